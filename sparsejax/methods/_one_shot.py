"""One-shot pruning."""

from typing import Any

import optax

from sparsejax.core import Distribution, InputAxes, Score, Stacked, Where
from sparsejax.core.structures import Structure, density_of
from sparsejax.distributions import uniform
from sparsejax.scores import magnitude
from sparsejax.transforms import check_schedule, check_some_update, prune_to, sparsify


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
  """Trains a dense network, prunes it once and trains the remaining weights.

  masks = the best `density` of the weights after start_step + update_every steps

  The inner optimizer receives masked gradients, which are dense until the pruning.

  Args:
    inner: any optax optimizer.
    density: fraction of weights kept, in (0, 1], after pruning.
    update_every: weights are pruned in step start_step + update_every; with None, when
      `update_masks=True` is passed to the update.
    start_step: steps before the schedule of mask updates begins.
    end_step: accepted for the common signature; must not be before the pruning step.
    distribution: sets the budget of each layer; None selects over the whole network at
      once.
    where: which leaves are sparsified; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    seed: seed of the first masks and of random scores.
    score: the score of each weight; the highest are kept.
    structure: which patterns of live weights are allowed; see `sparsify`.

  Returns:
    An optax transformation; see `sparsify`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected; the structure
      does not fit.

  References:
    Han et al. 2015, "Learning both weights and connections", with a single iteration.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.one_shot(optax.sgd(0.1, momentum=0.9), density=0.25, update_every=1000)
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> int(sj.masks(state)["kernel"].sum())
    64
  """
  # Ending the schedule at its first mask update leaves that one alone.
  check_schedule(update_every, start_step, end_step)
  if update_every is not None:
    check_some_update(update_every, start_step, end_step)
    end_step = start_step + update_every
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
