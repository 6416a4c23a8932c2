"""Gradual magnitude pruning (Zhu & Gupta 2018)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.core import Distribution, InputAxes, Stacked, Where, check_integer
from sparsejax.core.structures import Structure, density_of
from sparsejax.distributions import check_density, uniform
from sparsejax.scores import magnitude
from sparsejax.transforms import check_schedule, prune_to, sparsify


def gradual_magnitude(
  inner: optax.GradientTransformation,
  density: Any,
  *,
  update_every: int | None = 100,
  start_step: int = 0,
  end_step: int | None = None,
  distribution: Distribution = uniform,
  where: Where = None,
  stacked: Stacked = False,
  input_axes: InputAxes = None,
  seed: Any = 0,
  initial_density: float = 1.0,
  structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Starts dense and prunes the smallest weights along a cubic.

  density(t) = d_f + (d_0 - d_f) (1 - (t - start) / (end - start))^3

  Gradients are masked. Every mask update keeps each layer's largest magnitudes.

  Args:
    inner: any optax optimizer.
    density: fraction of weights live at the end, in (0, 1]; or a schedule
      `step -> density` that takes the place of the cubic.
    update_every: steps between mask updates.
    start_step: see `sparsify`.
    end_step: the step of the last mask update, required; the density is reached at
      the last update that falls on or before it.
    distribution: of the live weights over the layers, at every density.
    where: see `sparsify`.
    stacked: see `sparsify`.
    input_axes: see `sparsify`.
    seed: see `sparsify`.
    initial_density: where the cubic starts, in (0, 1].
    structure: see `sparsify`.

  Returns:
    An optax transformation; see `sparsify`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected; the structure
      does not fit.

  References:
    Zhu & Gupta 2018, "To prune, or not to prune", eq. 1.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.gradual_magnitude(optax.adam(1e-3), density=0.25, end_step=1000)
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> int(sj.masks(state)["kernel"].sum())
    64
  """
  schedule = gradual_density(
    density_of(density, structure), initial_density, update_every, start_step, end_step
  )
  return sparsify(
    inner,
    prune_to(magnitude, schedule, distribution),
    None,
    update_every=update_every,
    start_step=start_step,
    end_step=end_step,
    distribution=distribution,
    where=where,
    stacked=stacked,
    input_axes=input_axes,
    seed=seed,
    mask_gradients=True,
    structure=structure,
  )


def gradual_density(
  density: Any,
  initial_density: float,
  update_every: int | None,
  start_step: int,
  end_step: int | None,
):
  """The cubic from a method's arguments; a density that is a schedule stays one.

  Args:
    density: as in `gradual_magnitude`.
    initial_density: as in `gradual_magnitude`.
    update_every: as in `gradual_magnitude`.
    start_step: as in `gradual_magnitude`.
    end_step: as in `gradual_magnitude`.

  Returns:
    A schedule `step -> density`, at its end at the last mask update.

  Raises:
    TypeError: as in `gradual_magnitude`.
    ValueError: as in `gradual_magnitude`.
  """
  if end_step is None:
    raise ValueError("end_step must be given: the density is reached there; got None.")
  check_schedule(update_every, start_step, end_step)
  if callable(density):
    return density
  check_density(density)
  check_density(initial_density, "initial_density")
  traced = isinstance(density, jax.Array) or isinstance(initial_density, jax.Array)
  if not traced and initial_density < density:
    raise ValueError(
      f"initial_density must be at least density = {density}, got {initial_density}."
    )
  if update_every is None:
    raise ValueError("update_every must be an integer of at least 1, got None.")
  updates = (end_step - start_step) // update_every
  if updates < 1:
    raise ValueError(
      f"end_step must be at least start_step + update_every = "
      f"{start_step + update_every}, got {end_step}: the masks would never change."
    )
  return cubic(initial_density, density, start_step, updates * update_every)


def cubic(initial: float, final: Any, start_step: int, steps: int):
  """The Zhu-Gupta schedule of densities.

  d(t) = final + (initial - final) (1 - clip((t - start) / steps, 0, 1))^3

  Args:
    initial: density up to start_step.
    final: density from start_step + steps on.
    start_step: where the cubic begins.
    steps: how long it takes.

  Returns:
    A schedule `step -> float32`.

  Raises:
    TypeError: a density is no number, a step no integer.
    ValueError: an argument is outside its range.

  Example:
    >>> schedule = cubic(1.0, 0.1, start_step=0, steps=100)
    >>> print(schedule(0), schedule(50), schedule(100))
    1.0 0.2125 0.1
  """
  check_density(initial, "initial")
  check_density(final, "final")
  check_integer("start_step", start_step, 0)
  check_integer("steps", steps, 1)

  def schedule(step):
    t = (jnp.asarray(step, jnp.float32) - start_step) / steps
    return final + (initial - final) * (1 - jnp.clip(t, 0.0, 1.0)) ** 3

  return schedule
