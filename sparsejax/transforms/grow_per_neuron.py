"""Grow per neuron: what a layer lacks is shared out among its neurons first."""

import jax
import jax.numpy as jnp

from sparsejax.core.budgets import apportion, live_counts, mean_scores
from sparsejax.core.checks import check_score
from sparsejax.core.layerwise import usable
from sparsejax.core.reduce import count
from sparsejax.core.selection import select
from sparsejax.core.types import MaskTransform, PyTree, Score, ScoreInputs, Topology

Array = jax.Array


def grow_per_neuron(score: Score) -> MaskTransform:
  """Wakes each neuron's best dead weights; neurons share in proportion to their mean.

  grown_j ~ mean_i s_ij, summing to budget_l - live_l

  with j over the last axis of a kernel, its outputs, and i over all others, dead and
  live. Integers by largest remainder; what a full neuron cannot take moves on to the
  others, in proportion.

  Args:
    score: what a weight is worth; negative values count as zero in the means.

  Returns:
    A mask transform; after it every layer holds exactly its budget. It knows no
    structures.

  Raises:
    TypeError: score is no function.
    ValueError: in the update, a layer is not a matrix or a kernel.

  References:
    Dettmers & Zettlemoyer 2019 (`momentum_neuron` in the authors' implementation,
    which rounds down and leaves out neurons that would get fewer than ten).

  Example:
    >>> import sparsejax as sj
    >>> grow = sj.grow_per_neuron(sj.momentum)
    >>> transform = sj.chain(sj.drop(sj.magnitude, 0.3), grow)
  """
  check_score("score", score)

  def update(inputs: ScoreInputs, topology: Topology, state: PyTree):
    masks, budgets = topology.masks, topology.budgets
    scores = score(inputs)
    everything = jax.tree.map(jnp.ones_like, masks)
    finite = topology.finite & usable(scores, everything)

    def grown(mask, s, budget):
      missing = budget - live_counts([mask], [budget]).reshape(budget.shape)
      if mask.ndim - budget.ndim < 2:
        raise ValueError(
          "grow_per_neuron must get layers of rank 2 or more, got shape "
          f"{mask.shape[budget.ndim :]}."
        )
      fill = jax.vmap(_fill) if budget.ndim else _fill
      return fill(s, mask, missing)

    masks = jax.tree.map(grown, masks, scores, budgets)
    return topology._replace(masks=masks, finite=finite), state

  return MaskTransform(lambda params: (), update)


def _fill(score: Array, mask: Array, missing: Array) -> Array:
  """One layer's mask with `missing` more weights live."""
  # The outputs lead, as rows: a transpose stays on its device, a reshape does not.
  score, mask = jnp.moveaxis(score, -1, 0), jnp.moveaxis(mask, -1, 0)
  rows = jnp.zeros(mask.shape[0], jnp.int32)
  with jax.enable_x64(True):
    means = mean_scores([score], [jnp.ones_like(mask)], [rows])
  given = apportion(means, missing, count(~mask, 1))
  [woken] = select([score], given, [~mask], [1])
  return jnp.moveaxis(mask | woken, 0, -1)
