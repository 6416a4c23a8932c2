"""Grow: makes each layer's best masked weights live, up to its budget."""

from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.core import (
  LayerAxes,
  MaskTransform,
  PyTree,
  Score,
  ScoreInputs,
  Topology,
  apportion,
  check_known,
  check_score,
  count,
  from_vector,
  live_counts,
  live_in,
  mean_scores,
  ordered_bits,
  plain_axes,
  scores_are_finite,
  to_vector,
  top_k_masks,
)
from sparsejax.core.structures import fits_any, in_matrix_order, top_k_along

Array = jax.Array


def grow(score: Score) -> MaskTransform:
  """Grows the masked weights with the highest scores, up to each layer's budget.

  masks_l |= the (budget_l - live_l) dead weights with the largest scores

  Weights that were dropped earlier in the same chain are candidates too; if they are
  grown again, they keep their value. All other grown weights start from exactly zero
  and take this step's update.

  Args:
    score: the score of masked weights; the highest are grown.

  Returns:
    A mask transform; after it every layer has exactly as many live weights as its
    budget. A structure may change the budgets.

  Raises:
    TypeError: score is not a function.

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
    finite = finite & scores_are_finite(scores, dead)
    if structure is not None:
      masks, budgets = structure.fill(scores, budgets, masks, inputs.masks, axes=axes)
      return Topology(masks, budgets, finite, structure, axes), state
    grown = top_k_masks(scores, from_vector(missing, budgets), dead)
    masks = jax.tree.map(jnp.logical_or, masks, grown)
    return topology._replace(masks=masks, finite=finite), state

  return MaskTransform(lambda params: (), update, fits_any, keeps_budgets=True)


def grow_per_neuron(score: Score) -> MaskTransform:
  """Grows each neuron's best masked weights, in proportion to the neuron's mean score.

  grown_j ~ mean_i s_ij, summing to budget_l - live_l

  j is a neuron: an index over the output axes of a kernel. i is an index over all other
  axes and covers masked and live weights. Each of several stacked layers is treated
  separately. Numbers are rounded to integers by largest remainder; what a full neuron
  cannot take is divided among the others in proportion.

  Args:
    score: the score of each weight; negative values count as zero in the means.

  Returns:
    A mask transform; after it every layer has exactly as many live weights as its
    budget. It supports no structures.

  Raises:
    TypeError: score is not a function.
    ValueError: in init, the inputs and outputs of a kernel are not known.

  References:
    Dettmers & Zettlemoyer 2019: `momentum_neuron` in the authors' implementation,
    which rounds down and skips neurons that would get fewer than ten weights.

  Example:
    >>> import sparsejax as sj
    >>> grow = sj.grow_per_neuron(sj.momentum)
    >>> transform = sj.chain(sj.drop(sj.magnitude, 0.3), grow)
  """
  check_score("score", score)

  def update(inputs: ScoreInputs, topology: Topology, state: PyTree):
    masks, budgets, axes = topology.masks, topology.budgets, topology.axes
    axes = plain_axes(masks, budgets) if axes is None else axes
    check(axes)
    scores = score(inputs)
    everything = jax.tree.map(jnp.ones_like, masks)
    finite = topology.finite & scores_are_finite(scores, everything)
    masks = grown(scores, budgets, masks, axes=axes)
    return topology._replace(masks=masks, finite=finite), state

  def check(axes):
    for a in axes:
      if len(a.layer) < 2:
        raise ValueError(
          f"grow_per_neuron must be used for layers of rank 2 or more, got shape "
          f"{a.layer} at {a.path!r}."
        )
    check_known(axes, "grow_per_neuron")

  return MaskTransform(lambda params: (), update, check=check, keeps_budgets=True)


@in_matrix_order
def grown(scores: PyTree, budgets: PyTree, masks: PyTree, axes: Any) -> PyTree:
  """Adds the best masked weights of each neuron to the masks, up to the budgets.

  Args:
    scores: tree of floats.
    budgets: tree of int32, as in `Topology`.
    masks: tree of bool.
    axes: a `LayerAxes` per leaf.

  Returns:
    A tree like `masks`.
  """

  def fill(score, budget, mask, layer):
    return mask | _grow_missing(score, mask, budget - live_in(mask, budget), layer)

  return jax.tree.map(fill, scores, budgets, masks, axes)


def _grow_missing(score: Array, mask: Array, missing: Array, layer: LayerAxes) -> Array:
  """Returns a mask of the weights to grow, `missing` of them per layer."""
  # Mean score of each neuron, with the output axes moved to the front: a transpose
  # needs no communication between devices.
  rows = missing.ndim
  front = range(rows, rows + len(layer.outputs))
  dead = ~jnp.moveaxis(mask, layer.outputs, front)
  neurons = dead.shape[: front.stop]
  every, ones = jnp.moveaxis(score, layer.outputs, front), jnp.ones_like(dead)
  with jax.enable_x64(True):
    means = mean_scores([every], [ones], [jnp.zeros(neurons, jnp.int32)])
  # Divide each layer's missing weights among its neurons, by the means and by how many
  # masked weights each neuron has.
  layers, width = missing.size, layer.length(layer.outputs)
  given = jax.vmap(apportion)(
    means.reshape(layers, width),
    missing.reshape(layers),
    count(dead, front.stop).reshape(layers, width),
  )
  # Of each neuron's masked weights take the given number with the highest scores.
  shape = [1 if i in layer.inputs + layer.taps else n for i, n in enumerate(mask.shape)]
  inputs = (*layer.taps, *layer.inputs)
  return top_k_along(ordered_bits(score, ~mask), given.reshape(shape), inputs)
