"""Structures of units, such as blocks or channels, live or dead as a whole."""

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
# `(x, axes) -> (view, unit_axes)`: a view with the weights of a unit along `unit_axes`.
View = Callable[[Array, LayerAxes], tuple[Array, tuple[int, ...]]]
_BITS = 29


def check_pooling(score: Any) -> None:
  """Raises ValueError unless `score` is a pooling that `of_units` supports."""
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
  """Makes a structure whose layers consist of units of one size.

  A unit is live or dead as a whole. Its score is the sum (or mean, or maximum) of the
  scores of its weights. The best units of a layer are selected as by `top_k_mask`.

  Args:
    name: the name in error messages.
    check: `(path, axes) -> None`; raises ValueError for a layer that the structure does
      not fit.
    unit: a function from a layer's shape (taps ..., inputs, outputs) to the number of
      weights in one unit.
    view: `(x, axes) -> (view, unit_axes)`, the tensor, reshaped if necessary, with the
      weights of each unit along `unit_axes`. The axes of `x` are those that stack
      layers, taps, inputs and outputs, in this order; `axes` has their numbers.
    restore: `(view, like, axes) -> array` of the shape of `like`; inverts `view`.
    score: "sum", "mean" or "max".

  Returns:
    A structure.

  Raises:
    ValueError: `score` is not one of these.
  """
  check_pooling(score)

  def pool(x: Array, layer: LayerAxes) -> Array:
    x, axes = view(x, layer)
    if score == "max":
      return jnp.max(x, axes, keepdims=True)
    # Units have one size, so the mean ranks them as the sum does.
    return exact_sums(x, axes, len(layer.stacked))

  def whole(mask: Array, layer: LayerAxes) -> Array:
    mask, axes = view(mask, layer)
    return jnp.all(mask, axes, keepdims=True)

  def spread(unit_mask: Array, mask: Array, layer: LayerAxes) -> Array:
    # An operation with the mask gives the result its sharding; `broadcast_to` would
    # not.
    nothing = jnp.zeros_like(view(mask, layer)[0])
    return restore(jnp.logical_or(unit_mask, nothing), mask, layer)

  # Counts of at least one weight give at least one unit.
  def in_units(counts: Array, layer: LayerAxes) -> Array:
    return jnp.maximum(counts // unit(layer.matrix), jnp.minimum(counts, 1))

  # Selects units by their pooled scores. A unit is a candidate if all its weights are.
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
  """Sums along axes, up to a factor per layer, independently of the order.

  Use it to compare sums within a layer. Numbers are summed as integers with 29 bits for
  the layer's largest. A float sum differs in its last bits between one device and
  eight, and the masks would differ too.

  Args:
    x: floats; the sum over -inf or NaN is -inf or NaN.
    axes: the axes to sum over.
    rows: the number of leading axes that stack layers, each with a factor of its own.

  Returns:
    float32 in proportion to the sums of each layer; the axes are kept with length 1.
  """
  x = x.astype(jnp.float32)
  zero = jnp.zeros_like(x)
  finite = jnp.isfinite(x)
  number = jnp.where(finite, x, zero)
  exponent = lax.bitcast_convert_type(largest(jnp.abs(number), rows), jnp.int32) >> 23
  shift = jnp.clip(_BITS - (exponent - 127), -126, 126)
  # The factor is a power of two, made from the bits of the exponent, so that the
  # multiplication does not round.
  factor = lax.bitcast_convert_type((shift + 127) << 23, jnp.float32)
  factor = lax.expand_dims(factor, range(rows, x.ndim))
  with jax.enable_x64(True):
    fixed = (number * factor).astype(jnp.int32).astype(jnp.int64)
    sums = jnp.sum(fixed, axes, keepdims=True).astype(jnp.float32)
  return sums + jnp.sum(jnp.where(finite, zero, x), axes, keepdims=True)
