"""Global magnitude pruning."""

from typing import Any

import optax

from sparsejax.core import InputAxes, Stacked, Where
from sparsejax.core.structures import Structure, density_of
from sparsejax.distributions import uniform
from sparsejax.methods._gradual_magnitude import gradual_density
from sparsejax.scores import magnitude
from sparsejax.transforms import prune_to, sparsify


def global_magnitude(
  inner: optax.GradientTransformation,
  density: Any,
  *,
  update_every: int | None = 100,
  start_step: int = 0,
  end_step: int | None = None,
  distribution: None = None,
  where: Where = None,
  stacked: Stacked = False,
  input_axes: InputAxes = None,
  seed: Any = 0,
  initial_density: float = 1.0,
  structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Starts dense and prunes the smallest weights of the whole network along a cubic.

  masks = the best density(t) of all weights by |w|, wherever they lie

  with density(t) as in `gradual_magnitude`; for one step, use `one_shot` with
  `distribution=None`. Gradients are masked. A layer may lose all its weights.

  Args:
    inner: any optax optimizer.
    density: fraction of weights live at the end, in (0, 1]; or a schedule
      `step -> density` that takes the place of the cubic.
    update_every: steps between mask updates.
    start_step: see `sparsify`.
    end_step: the step of the last mask update, required.
    distribution: must be None: the whole network is one.
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
    Zhu & Gupta 2018, "To prune, or not to prune", eq. 1, over all layers at once.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.global_magnitude(optax.sgd(0.1), density=0.25, end_step=1000)
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> int(sj.masks(state)["kernel"].sum())
    64
  """
  if distribution is not None:
    raise ValueError(
      f"distribution must be None for global_magnitude, which selects over all layers "
      f"at once, got {distribution!r}."
    )
  schedule = gradual_density(
    density_of(density, structure), initial_density, update_every, start_step, end_step
  )
  return sparsify(
    inner,
    prune_to(magnitude, schedule, None),
    None,
    update_every=update_every,
    start_step=start_step,
    end_step=end_step,
    distribution=uniform,
    where=where,
    stacked=stacked,
    input_axes=input_axes,
    seed=seed,
    mask_gradients=True,
    structure=structure,
  )
