"""Grow: each layer wakes the best of its dead weights until its budget is full."""

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
    finite = finite & scores_are_finite(scores, dead)
    if structure is not None:
      masks, budgets = structure.fill(scores, budgets, masks, inputs.masks, axes=axes)
      return Topology(masks, budgets, finite, structure, axes), state
    grown = top_k_masks(scores, from_vector(missing, budgets), dead)
    masks = jax.tree.map(jnp.logical_or, masks, grown)
    return topology._replace(masks=masks, finite=finite), state

  return MaskTransform(lambda params: (), update, fits_any)


def grow_per_neuron(score: Score) -> MaskTransform:
  """Wakes each neuron's best dead weights; neurons share in proportion to their mean.

  grown_j ~ mean_i s_ij, summing to budget_l - live_l

  with j over the output axes of a kernel and i over all others, dead and live; layers
  that are stacked share nothing. Integers by largest remainder; what a full neuron
  cannot take moves on to the others, in proportion.

  Args:
    score: what a weight is worth; negative values count as zero in the means.

  Returns:
    A mask transform; after it every layer holds exactly its budget. It knows no
    structures.

  Raises:
    TypeError: score is no function.
    ValueError: in init, the inputs and outputs of a kernel are not known.

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
          f"grow_per_neuron must get layers of rank 2 or more, got shape {a.layer} at "
          f"{a.path!r}."
        )
    check_known(axes, "grow_per_neuron")

  return MaskTransform(lambda params: (), update, check=check)


@in_matrix_order
def grown(scores: PyTree, budgets: PyTree, masks: PyTree, axes: Any) -> PyTree:
  """The masks with the best dead weights of each neuron, up to the budgets."""

  def fill(score, budget, mask, layer):
    return mask | _woken(score, mask, budget - live_in(mask, budget), layer)

  return jax.tree.map(fill, scores, budgets, masks, axes)


def _woken(score: Array, mask: Array, missing: Array, layer: LayerAxes) -> Array:
  """The dead weights to wake, as many per layer as are missing."""
  # Outputs lead in what is summed up: a transpose stays on its device.
  rows = missing.ndim
  front = range(rows, rows + len(layer.outputs))
  dead = ~jnp.moveaxis(mask, layer.outputs, front)
  neurons = dead.shape[: front.stop]
  every, ones = jnp.moveaxis(score, layer.outputs, front), jnp.ones_like(dead)
  with jax.enable_x64(True):
    means = mean_scores([every], [ones], [jnp.zeros(neurons, jnp.int32)])
  # One apportionment per layer, over all its neurons.
  layers, width = missing.size, layer.length(layer.outputs)
  given = jax.vmap(apportion)(
    means.reshape(layers, width),
    missing.reshape(layers),
    count(dead, front.stop).reshape(layers, width),
  )
  shape = [1 if i in layer.inputs + layer.taps else n for i, n in enumerate(mask.shape)]
  inputs = (*layer.taps, *layer.inputs)
  return top_k_along(ordered_bits(score, ~mask), given.reshape(shape), inputs)
