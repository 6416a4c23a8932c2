"""Integer budgets: exact apportionment, and means that no layout can change.

Everything here works on a handful of numbers, one a layer. It is done in 64-bit
integers inside `jax.enable_x64`, so that no total overflows, no share depends on
the order of a summation, and traced values are as exact as static ones.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.core._reduce import count, largest, replicated, total
from sparsejax.core._stacked import rows_first, stacked_axes

Array = jax.Array
PyTree = Any
_SHARE_BITS = 30
_SCORE_BITS = 29  # of `mean_scores`: what `reduce.total` can sum


def quantize(shares: Array) -> Array:
  """Non-negative reals as integers in proportion, the largest about 2^30.

  Args:
    shares: floats (layers,).

  Returns:
    int64 (layers,); zeros where all shares are zero. Call under x64.
  """
  shares = jnp.maximum(shares.astype(jnp.float64), jnp.float64(0))
  top = jnp.max(shares)
  unit = shares / jnp.where(top > 0, top, jnp.float64(1))
  return jnp.round(unit * jnp.float64(2**_SHARE_BITS)).astype(jnp.int64)


def apportion(weights: Array, amount, capacities: Array, fallback: Array | None = None):
  """Shares out `amount` units in proportion to weights, exactly, within capacities.

  Capped layers are filled and what they cannot take moves on to the others, in
  proportion; integers by largest remainder, ties to the first layer.

  Args:
    weights: (layers,) non-negative, integers (used as they are) or floats
      (resolved to 2^-30 of the largest).
    amount: integer, possibly traced; clipped to the sum of the capacities.
    capacities: integers (layers,), the most a layer may get.
    fallback: (layers,) weights to use when those of all open layers are zero; the
      open capacities, if None or zero as well.

  Returns:
    int32 (layers,): non-negative, at most `capacities`, summing to `amount`.

  Example:
    >>> import jax.numpy as jnp
    >>> apportion(jnp.array([1, 1, 8]), 10, jnp.array([9, 9, 4]))
    Array([3, 3, 4], dtype=int32)
  """
  with jax.enable_x64(True):
    zero, one = jnp.int64(0), jnp.int64(1)
    capacity = jnp.asarray(capacities).astype(jnp.int64)
    fallback = capacity if fallback is None else jnp.asarray(fallback)
    fallback = fallback.astype(jnp.int64)
    amount = jnp.clip(jnp.asarray(amount).astype(jnp.int64), zero, jnp.sum(capacity))
    weights = jnp.asarray(weights)
    if jnp.issubdtype(weights.dtype, jnp.floating):
      weights = quantize(weights)
    weights = jnp.maximum(weights.astype(jnp.int64), zero)

    def shares(full):
      """Integer weights of the layers still open, and what is left for them."""
      left = amount - jnp.sum(jnp.where(full, capacity, zero))
      open_ = jnp.where(full, zero, weights)
      for other in (fallback, capacity):
        spare = jnp.where(full, zero, other)
        open_ = jnp.where(jnp.sum(open_) > 0, open_, spare)
      # left * weight must stay below 2^63.
      excess = _bit_length(left) + _bit_length(jnp.max(open_)) - jnp.int64(62)
      return open_ >> jnp.maximum(excess, zero), left

    def grows(carry):
      return carry[1]

    def fill(carry):
      full, _ = carry
      open_, left = shares(full)
      floor = left * open_ // jnp.maximum(jnp.sum(open_), one)
      over = ~full & (floor >= capacity)
      return full | over, jnp.any(over)

    full, _ = lax.while_loop(grows, fill, (capacity <= 0, jnp.asarray(True)))
    open_, left = shares(full)
    whole = jnp.maximum(jnp.sum(open_), one)
    floor, remainder = left * open_ // whole, left * open_ % whole
    short = left - jnp.sum(jnp.where(full, zero, floor))
    # A stable sort of one number a layer: ties go to the first layer.
    order = jnp.argsort(jnp.where(full, -one, remainder), stable=True, descending=True)
    rank = jnp.argsort(order)
    extra = (rank < short) & ~full
    result = jnp.where(full, capacity, floor + extra.astype(jnp.int64))
    return result.astype(jnp.int32)


def apportion_equal_spill(weights: Array, amount, capacities: Array, fallback: Array):
  """Shares out `amount` units in proportion to weights; full layers spill equally.

  given_l = min(capacity_l, share_l * amount + e), with e such that the sum is `amount`

  Unlike in `apportion`, what a full layer cannot take is split into equal parts, one
  for each layer with room, whatever its share: sparse momentum's rule.

  Args:
    weights: as in `apportion`.
    amount: as in `apportion`.
    capacities: as in `apportion`.
    fallback: (layers,) weights to use when all are zero.

  Returns:
    int32 (layers,): non-negative, at most `capacities`, summing to `amount`.

  Example:
    >>> import jax.numpy as jnp
    >>> weights, capacities = jnp.array([8, 1, 1]), jnp.array([4, 9, 9])
    >>> apportion_equal_spill(weights, 10, capacities, capacities)
    Array([4, 3, 3], dtype=int32)
  """
  with jax.enable_x64(True):
    zero = jnp.int64(0)
    capacity = jnp.asarray(capacities).astype(jnp.int64)
    amount = jnp.clip(jnp.asarray(amount).astype(jnp.int64), zero, jnp.sum(capacity))
    unlimited = jnp.broadcast_to(amount, capacity.shape)
    given = apportion(weights, amount, unlimited, fallback).astype(jnp.int64)

    def overflows(given):
      return jnp.any(given > capacity)

    def spill(given):
      excess = jnp.sum(jnp.maximum(given - capacity, zero))
      given = jnp.minimum(given, capacity)
      room = (given < capacity).astype(jnp.int64)
      layers = jnp.sum(room)
      # What does not divide goes to the first layers with room.
      rank = jnp.cumsum(room) - room
      part = excess // layers + (rank < excess % layers).astype(jnp.int64)
      return given + room * part

    return lax.while_loop(overflows, spill, given).astype(jnp.int32)


def _bit_length(x: Array) -> Array:
  return jnp.int64(64) - lax.clz(jnp.maximum(x, jnp.int64(0)))


def live_counts(masks: PyTree, budgets: PyTree) -> Array:
  """The number of live weights of each layer.

  Args:
    masks: tree of bool arrays.
    budgets: tree of int32 scalars, or one number per layer for leaves that stack
      layers; see `core.stacked`.

  Returns:
    int32 (layers,).
  """
  return to_vector(jax.tree.map(live_in, masks, budgets))


def live_in(mask: Array, budget: Array | jax.ShapeDtypeStruct) -> Array:
  """Counts one leaf's live weights: int32 of the shape of its budget."""
  rows = len(stacked_axes(budget))
  return count(rows_first(mask, budget), rows).reshape(budget.shape)


def layer_sizes(masks: PyTree, budgets: PyTree) -> list[int]:
  """The size of each layer, as Python integers, in the order of `to_vector`."""
  sizes = []
  for mask, budget in zip(
    jax.tree.leaves(masks), jax.tree.leaves(budgets), strict=True
  ):
    rows = budget.size
    sizes += [mask.size // rows] * rows
  return sizes


def to_vector(tree: PyTree) -> Array:
  """Concatenates budgets to one vector (layers,), row by row where layers stack."""
  vectors = [jnp.ravel(replicated(x)) for x in jax.tree.leaves(tree)]
  return jnp.concatenate(vectors)


def from_vector(vector: Array, like: PyTree) -> PyTree:
  """The inverse of `to_vector`: cuts (layers,) into the leaves of `like`."""
  leaves, treedef = jax.tree.flatten(like)
  parts, start = [], 0
  for leaf in leaves:
    part = vector[start : start + leaf.size]
    parts.append(part.reshape(leaf.shape))
    start += leaf.size
  return treedef.unflatten(parts)


def mean_scores(scores: PyTree, masks: PyTree, budgets: PyTree) -> Array:
  """The mean score of each layer's live weights, the same on every layout.

  mean_l = sum_{i live} max(s_i, 0) / n_live

  Scores are summed as fixed-point integers of 29 bits below the layer's largest,
  so the sum does not depend on its order: a float sum differs in the last bits
  between one device and eight, and with it would the budgets.

  Args:
    scores: tree of floats.
    masks: tree of bool arrays.
    budgets: tree of int32, whose shapes tell stacked leaves; see `core.stacked`.

  Returns:
    float64 (layers,); 0 for a layer without live weights. Call under x64.
  """

  def mean(score, mask, budget):
    rows = len(stacked_axes(budget))
    live = jnp.maximum(live_in(mask, budget), 1).astype(jnp.float64)
    score, mask = rows_first(score, budget), rows_first(mask, budget)
    score = jnp.where(mask, jnp.maximum(score.astype(jnp.float32), jnp.float32(0)), 0)
    top = largest(score, rows)
    # A power of two, made from the exponent's bits, scales without rounding.
    exponent = (lax.bitcast_convert_type(top, jnp.int32) >> 23) - 127
    shift = jnp.clip(_SCORE_BITS - 1 - exponent, -126, 126)
    factor = lax.bitcast_convert_type((shift + 127) << 23, jnp.float32)
    per_row = lax.expand_dims(factor, range(rows, mask.ndim)) if rows else factor
    fixed = (score * per_row).astype(jnp.uint32)
    sums = total(fixed, rows).astype(jnp.float64).reshape(budget.shape)
    return sums / live / factor.astype(jnp.float64).reshape(budget.shape)

  with jax.enable_x64(True):
    return to_vector(jax.tree.map(mean, scores, masks, budgets))
