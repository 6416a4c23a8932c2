"""Grow per neuron: what a layer lacks is shared out among its neurons first."""

import jax
import jax.numpy as jnp

from sparsejax.core.budgets import apportion, live_counts, mean_scores
from sparsejax.core.checks import check_score
from sparsejax.core.layerwise import usable
from sparsejax.core.ordered import ordered_bits
from sparsejax.core.reduce import count
from sparsejax.core.structures.fan_in import top_k_along
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
      return mask | _woken(s, mask, missing)

    masks = jax.tree.map(grown, masks, scores, budgets)
    return topology._replace(masks=masks, finite=finite), state

  return MaskTransform(lambda params: (), update)


def _woken(score: Array, mask: Array, missing: Array) -> Array:
  """The dead weights to wake, as many a layer as are missing."""
  # Outputs lead in what is summed up: a transpose stays on its device.
  rows = missing.ndim
  dead = ~jnp.moveaxis(mask, -1, rows)
  neurons = dead.shape[: rows + 1]
  with jax.enable_x64(True):
    budgets = [jnp.zeros(neurons, jnp.int32)]
    means = mean_scores([jnp.moveaxis(score, -1, rows)], [jnp.ones_like(dead)], budgets)
  share = jax.vmap(apportion) if rows else apportion
  given = share(means, missing, count(dead, rows + 1))
  given = given.reshape(*given.shape[:rows], *(1,) * (mask.ndim - rows - 1), -1)
  inputs = tuple(range(rows, mask.ndim - 1))
  return top_k_along(ordered_bits(score, ~mask), given, inputs)
