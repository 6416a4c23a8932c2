"""Global saliency pruning."""

from typing import Any

import optax

from sparsejax.core import InputAxes, Stacked, Where
from sparsejax.core.structures import Structure, density_of
from sparsejax.distributions import uniform
from sparsejax.methods._gradual_magnitude import gradual_density
from sparsejax.scores import taylor
from sparsejax.transforms import prune_to, sparsify


def global_saliency(
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
  """Starts dense and prunes the network's least salient weights along a cubic schedule.

  masks = the best density(t) of all weights by |w dL/dw|, wherever they lie

  density(t) is that of `gradual_magnitude`. The saliency |w dL/dw| is the first-order
  change of the loss when a weight is removed. All layers compete, and a layer may lose
  all its weights. The inner optimizer receives masked gradients. To prune in a single
  step, use `one_shot` with `distribution=None` and `score=sj.taylor`.

  Args:
    inner: any optax optimizer.
    density: fraction of weights kept, in (0, 1], at the end of the cubic; or a schedule
      `step -> density` that replaces the cubic.
    update_every: steps between mask updates.
    start_step: steps before the schedule of mask updates begins.
    end_step: no mask update after this step; required.
    distribution: must be None: weights are selected over the whole network at once.
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
    Molchanov et al. 2019, "Importance estimation for neural network pruning", eq. 8,
    without the square; along the cubic of Zhu & Gupta 2018.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.global_saliency(optax.sgd(0.1), density=0.25, end_step=1000)
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> int(sj.masks(state)["kernel"].sum())
    64
  """
  if distribution is not None:
    raise ValueError(
      f"distribution must be None for global_saliency, which selects over all layers "
      f"at once, got {distribution!r}."
    )
  schedule = gradual_density(
    density_of(density, structure), initial_density, update_every, start_step, end_step
  )
  return sparsify(
    inner,
    prune_to(taylor, schedule, None),
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
