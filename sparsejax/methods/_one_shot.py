"""One-shot pruning."""

from typing import Any

import optax

from sparsejax.core import Distribution, InputAxes, Score, Stacked, Where
from sparsejax.core.structures import Structure, density_of
from sparsejax.distributions import uniform
from sparsejax.scores import magnitude
from sparsejax.transforms import check_schedule, prune_to, sparsify


def one_shot(
  inner: optax.GradientTransformation,
  density: Any,
  *,
  update_every: int | None = 100,
  start_step: int = 0,
  end_step: int | None = None,
  distribution: Distribution | None = uniform,
  where: Where = None,
  stacked: Stacked = False,
  input_axes: InputAxes = None,
  seed: Any = 0,
  score: Score = magnitude,
  structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Trains dense, prunes once, and trains on what is left.

  masks = the best `density` of the weights after start_step + update_every steps

  Gradients are masked, so dense until then.

  Args:
    inner: any optax optimizer.
    density: fraction of weights live at the end, in (0, 1].
    update_every: with start_step, the step after which weights are pruned; None
      prunes when `update_masks=True` is passed to the update.
    start_step: see `sparsify`.
    end_step: accepted for the common signature; not before that step.
    distribution: of the live weights over the layers; None selects over the whole
      network at once.
    where: see `sparsify`.
    stacked: see `sparsify`.
    input_axes: see `sparsify`.
    seed: see `sparsify`.
    score: what a weight is worth.
    structure: see `sparsify`.

  Returns:
    An optax transformation; see `sparsify`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected; the structure
      does not fit.

  References:
    Han et al. 2015, "Learning both weights and connections", with one iteration.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.one_shot(optax.sgd(0.1, momentum=0.9), density=0.25, update_every=1000)
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> int(sj.masks(state)["kernel"].sum())
    64
  """
  check_schedule(update_every, start_step, end_step)
  if update_every is not None:
    once = start_step + update_every
    if end_step is not None and end_step < once:
      raise ValueError(
        f"end_step must be at least start_step + update_every = {once}, got "
        f"{end_step}: the masks would never change."
      )
    end_step = once
  return sparsify(
    inner,
    prune_to(score, density_of(density, structure), distribution),
    None,
    update_every=update_every,
    start_step=start_step,
    end_step=end_step,
    distribution=distribution or uniform,
    where=where,
    stacked=stacked,
    input_axes=input_axes,
    seed=seed,
    mask_gradients=True,
    structure=structure,
  )
