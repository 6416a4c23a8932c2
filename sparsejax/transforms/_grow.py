"""Grow: each layer wakes the best of its dead weights until its budget is full."""

import jax
import jax.numpy as jnp

from sparsejax.core import (
  MaskTransform,
  PyTree,
  Score,
  ScoreInputs,
  Topology,
  check_score,
  from_vector,
  live_counts,
  to_vector,
  top_k_masks,
  usable,
)
from sparsejax.core.structures import fits_any


def grow(score: Score) -> MaskTransform:
  """Wakes each layer's best dead weights until it holds its budget.

  masks_l |= the (budget_l - live_l) dead weights with the largest scores

  Weights dropped earlier in the same chain are candidates too, and keep their value
  if they come back; all others start from exactly zero and take this step's update.

  Args:
    score: what a dead weight would be worth.

  Returns:
    A mask transform; after it every layer holds exactly its budget.

  Raises:
    TypeError: score is no function.

  Example:
    >>> import sparsejax as sj
    >>> rigl = sj.chain(sj.drop(sj.magnitude, 0.3), sj.grow(sj.gradient))
  """
  check_score("score", score)

  def update(inputs: ScoreInputs, topology: Topology, state: PyTree):
    masks, budgets, finite, structure, axes = topology
    scores = score(inputs)
    dead = jax.tree.map(jnp.logical_not, masks)
    missing = to_vector(budgets) - live_counts(masks, budgets)
    finite = finite & usable(scores, dead)
    if structure is not None:
      masks, budgets = structure.fill(scores, budgets, masks, inputs.masks, axes=axes)
      return Topology(masks, budgets, finite, structure, axes), state
    grown = top_k_masks(scores, from_vector(missing, budgets), dead)
    masks = jax.tree.map(jnp.logical_or, masks, grown)
    return topology._replace(masks=masks, finite=finite), state

  return MaskTransform(lambda params: (), update, fits_any)
