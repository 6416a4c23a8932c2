"""Gradual magnitude pruning (Zhu & Gupta 2018)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.core import Distribution, InputAxes, Stacked, Where, check_integer
from sparsejax.core.structures import Structure, density_of
from sparsejax.distributions import EndingSchedule, check_density, uniform
from sparsejax.scores import magnitude
from sparsejax.transforms import check_schedule, check_some_update, prune_to, sparsify


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
  """Starts dense and prunes the smallest weights along a cubic schedule.

  density(t) = d_f + (d_0 - d_f) (1 - (t - start) / (end - start))^3

  The inner optimizer receives masked gradients. Every mask update keeps the largest
  magnitudes of each layer.

  Args:
    inner: any optax optimizer.
    density: fraction of weights kept, in (0, 1], at the end of the cubic; or a schedule
      `step -> density` that replaces the cubic.
    update_every: steps between mask updates.
    start_step: steps before the schedule of mask updates begins.
    end_step: no mask update after this step; required. The final density is reached at
      the last mask update at or before this step.
    distribution: sets the budget of each layer, at every density.
    where: which leaves are sparsified; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    seed: seed of the first masks and of random scores.
    initial_density: density at the start of the cubic, in (0, 1].
    structure: which patterns of live weights are allowed; see `sparsify`.

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
  """Builds the cubic density schedule from a method's arguments.

  A density that is already a schedule is returned unchanged.

  Args:
    density: as in `gradual_magnitude`.
    initial_density: as in `gradual_magnitude`.
    update_every: as in `gradual_magnitude`.
    start_step: as in `gradual_magnitude`.
    end_step: as in `gradual_magnitude`.

  Returns:
    A schedule `step -> density` that reaches the final density at the last mask update.

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
  # The cubic must end at a step with a mask update, which may be before end_step.
  steps = check_some_update(update_every, start_step, end_step)
  return cubic(initial_density, density, start_step, steps)


def cubic(initial: float, final: Any, start_step: int, steps: int):
  """Returns the cubic density schedule of Zhu & Gupta (2018).

  d(t) = final + (initial - final) (1 - clip((t - start) / steps, 0, 1))^3

  Args:
    initial: density up to start_step, in (0, 1].
    final: density from start_step + steps on, in (0, 1].
    start_step: step at which the cubic begins.
    steps: length of the cubic in steps.

  Returns:
    A schedule `step -> float32`. At its end `prune_to` takes `final` itself, which
    float32 may round.

  Raises:
    TypeError: a density is not a number, or a step is not an integer.
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

  return EndingSchedule(schedule, start_step + steps, final)
