"""Structures of whole units, such as blocks and channels: all of one unit or none."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.core._kernel_axes import LayerAxes
from sparsejax.core._reduce import count, largest
from sparsejax.core._selection import top_k_masks
from sparsejax.core.structures._base import Structure, fit_units, in_matrix_order

Array = jax.Array
PyTree = Any
# `(x, axes) -> (view, unit_axes)`: a unit's weights lie along some axes of the view.
View = Callable[[Array, LayerAxes], tuple[Array, tuple[int, ...]]]
_BITS = 29


def check_pooling(score: Any) -> None:
  """Raises ValueError unless a unit's score is one that `of_units` knows."""
  if score not in ("sum", "mean", "max"):
    raise ValueError(f"score must be 'sum', 'mean' or 'max', got {score!r}.")


def of_units(
  name: str,
  check: Callable[[str, LayerAxes], None],
  unit: Callable[[tuple[int, ...]], int],
  view: View,
  restore: Callable[[Array, Array, LayerAxes], Array],
  score: str = "sum",
) -> Structure:
  """A structure whose layers are cut into units of one size.

  A unit is live or dead as a whole; its score is the sum (or mean, or maximum) over
  its weights, and the best units of a layer are those that `top_k_mask` takes.

  Args:
    name: how messages call it.
    check: `(path, axes) -> None`; raises ValueError for a layer it does not fit.
    unit: from a layer's shape (taps ..., inputs, outputs) to the number of weights in
      one unit.
    view: `(x, axes) -> (view, unit_axes)`, the tensor with the weights of each unit
      along `unit_axes`; a reshape at most. The axes of `x` are those that stack layers,
      taps, inputs and outputs, in this order, by their numbers in the `LayerAxes`.
    restore: `(view, like, axes) -> array` of the shape of `like`, undoes `view`.
    score: "sum", "mean" or "max".

  Returns:
    A structure.

  Raises:
    ValueError: score is none of these.
  """
  check_pooling(score)

  def pool(x: Array, layer: LayerAxes) -> Array:
    x, axes = view(x, layer)
    if score == "max":
      return jnp.max(x, axes, keepdims=True)
    # Units have one size, so means rank them as sums do.
    return exact_sums(x, axes, len(layer.stacked))

  def whole(mask: Array, layer: LayerAxes) -> Array:
    mask, axes = view(mask, layer)
    return jnp.all(mask, axes, keepdims=True)

  def spread(unit_mask: Array, mask: Array, layer: LayerAxes) -> Array:
    # Made of the mask, the units lie where it lies: `broadcast_to` would not know.
    nothing = jnp.zeros_like(view(mask, layer)[0])
    return restore(jnp.logical_or(unit_mask, nothing), mask, layer)

  def in_units(counts: Array, layer: LayerAxes) -> Array:
    return jnp.maximum(counts // unit(layer.matrix), jnp.minimum(counts, 1))

  def best(scores: PyTree, counts: PyTree, where: PyTree, axes: Any) -> PyTree:
    pooled = jax.tree.map(pool, scores, axes)
    candidates = jax.tree.map(whole, where, axes)
    units = jax.tree.map(in_units, counts, axes)
    found = top_k_masks(pooled, units, candidates)
    return jax.tree.map(spread, found, where, axes)

  @in_matrix_order
  def select(scores: PyTree, counts: PyTree, where: PyTree, axes: Any) -> PyTree:
    return best(scores, counts, where, axes)

  @in_matrix_order
  def fill(scores: PyTree, budgets: PyTree, masks: PyTree, before: PyTree, axes: Any):
    def lacking(mask, budget, layer):
      n = unit(layer.matrix)
      return (budget - count(mask, budget.ndim)) // n * n

    dead = jax.tree.map(jnp.logical_not, masks)
    missing = jax.tree.map(lacking, masks, budgets, axes)
    grown = best(scores, missing, dead, axes)
    return jax.tree.map(jnp.logical_or, masks, grown), budgets

  return Structure(
    name=name,
    check=check,
    unit=unit,
    fit=fit_units(unit),
    select=select,
    keep=select,
    fill=fill,
  )


def exact_sums(x: Array, axes: tuple[int, ...], rows: int) -> Array:
  """Sums along axes, for comparison only, that do not depend on their order.

  Numbers are summed as integers of 29 bits below the layer's largest: a float sum
  differs in its last bits between one device and eight, and with it would the masks.

  Args:
    x: floats; -inf and NaN go through to their sum.
    axes: the axes to sum over.
    rows: how many leading axes stack layers, each with a scale of its own.

  Returns:
    float32, with axes of length 1; in proportion to the sums, layer by layer.
  """
  x = x.astype(jnp.float32)
  zero = jnp.zeros_like(x)
  finite = jnp.isfinite(x)
  number = jnp.where(finite, x, zero)
  exponent = lax.bitcast_convert_type(largest(jnp.abs(number), rows), jnp.int32) >> 23
  shift = jnp.clip(_BITS - (exponent - 127), -126, 126)
  # A power of two, made from the exponent's bits, scales without rounding.
  factor = lax.bitcast_convert_type((shift + 127) << 23, jnp.float32)
  factor = lax.expand_dims(factor, range(rows, x.ndim))
  with jax.enable_x64(True):
    fixed = (number * factor).astype(jnp.int32).astype(jnp.int64)
    sums = jnp.sum(fixed, axes, keepdims=True).astype(jnp.float32)
  return sums + jnp.sum(jnp.where(finite, zero, x), axes, keepdims=True)
