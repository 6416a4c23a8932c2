"""Integer budgets: exact apportionment, and means that do not depend on sharding.

Everything here works on one number per layer. It is computed in 64-bit integers inside
`jax.enable_x64`, so that no total overflows, no share depends on the order of a sum,
and traced values are as exact as static ones.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.core._reduce import count, largest, replicated, total
from sparsejax.core._stacked import rows_first, stacked_axes

Array = jax.Array
PyTree = Any
_SHARE_BITS = 30
_SCORE_BITS = 29  # bits of a score in `mean_scores`, the most that `_reduce.total` sums


def quantize(shares: Array) -> Array:
  """Converts non-negative reals to integers in proportion, the largest 2^30.

  Call it in x64 mode.

  Args:
    shares: floats (layers,); negative ones count as 0.

  Returns:
    int64 (layers,); all zero if all shares are zero.
  """
  shares = jnp.maximum(shares.astype(jnp.float64), jnp.float64(0))
  top = jnp.max(shares)
  unit = shares / jnp.where(top > 0, top, jnp.float64(1))
  return jnp.round(unit * jnp.float64(2**_SHARE_BITS)).astype(jnp.int64)


def apportion(weights: Array, amount, capacities: Array, fallback: Array | None = None):
  """Divides `amount` units over layers, in proportion to weights, within capacities.

  The excess of full layers is divided over the others, again in proportion. Shares are
  rounded by largest remainder, with ties to the first layer.

  Args:
    weights: (layers,), non-negative: integers, which are used unchanged, or floats,
      which are rounded to multiples of 2^-30 of the largest.
    amount: integer, possibly traced; clipped to [0, sum of the capacities].
    capacities: integers (layers,), the most units that each layer may get.
    fallback: (layers,), the weights to use if those of all layers that are not full are
      zero. If None or zero as well, the capacities are used.

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
      """Returns weights of the layers that are not full, and the amount for them."""
      left = amount - jnp.sum(jnp.where(full, capacity, zero))
      open_ = jnp.where(full, zero, weights)
      for other in (fallback, capacity):
        spare = jnp.where(full, zero, other)
        open_ = jnp.where(jnp.sum(open_) > 0, open_, spare)
      # Shifts the weights so that left * weight stays below 2^63.
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

    # Marks layers whose share reaches their capacity as full, which raises the shares
    # of the others, until no other layer becomes full.
    full, _ = lax.while_loop(grows, fill, (capacity <= 0, jnp.asarray(True)))
    # Rounds the shares of the other layers down, and gives the rest of the amount, one
    # unit each, to the layers with the largest remainders.
    open_, left = shares(full)
    whole = jnp.maximum(jnp.sum(open_), one)
    floor, remainder = left * open_ // whole, left * open_ % whole
    short = left - jnp.sum(jnp.where(full, zero, floor))
    # A stable sort of one number per layer, so that ties go to the first layer.
    order = jnp.argsort(jnp.where(full, -one, remainder), stable=True, descending=True)
    rank = jnp.argsort(order)
    extra = (rank < short) & ~full
    result = jnp.where(full, capacity, floor + extra.astype(jnp.int64))
    return result.astype(jnp.int32)


def apportion_equal_spill(weights: Array, amount, capacities: Array, fallback: Array):
  """Divides `amount` units in proportion to weights, and the excess in equal parts.

  given_l = min(capacity_l, share_l * amount + e), with e such that the sum is `amount`

  Unlike in `apportion`, the excess of a full layer is divided into equal parts, one for
  each layer with room, whatever its weight. This is the rule of sparse momentum.

  Args:
    weights: as in `apportion`.
    amount: as in `apportion`.
    capacities: as in `apportion`.
    fallback: (layers,), the weights to use if all are zero.

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
    # Divides without regard to capacities, then moves the excess until none is left.
    unlimited = jnp.broadcast_to(amount, capacity.shape)
    given = apportion(weights, amount, unlimited, fallback).astype(jnp.int64)

    def overflows(given):
      return jnp.any(given > capacity)

    def spill(given):
      excess = jnp.sum(jnp.maximum(given - capacity, zero))
      given = jnp.minimum(given, capacity)
      room = (given < capacity).astype(jnp.int64)
      layers = jnp.sum(room)
      # The remainder of the division goes to the first layers with room.
      rank = jnp.cumsum(room) - room
      part = excess // layers + (rank < excess % layers).astype(jnp.int64)
      return given + room * part

    return lax.while_loop(overflows, spill, given).astype(jnp.int32)


def _bit_length(x: Array) -> Array:
  return jnp.int64(64) - lax.clz(jnp.maximum(x, jnp.int64(0)))


def live_counts(masks: PyTree, budgets: PyTree) -> Array:
  """Counts the live weights of each layer.

  Args:
    masks: tree of bool arrays.
    budgets: tree of int32 scalars, or one number per layer for leaves that stack
      layers; see `core/_stacked.py`.

  Returns:
    int32 (layers,).
  """
  return to_vector(jax.tree.map(live_in, masks, budgets))


def live_in(mask: Array, budget: Array | jax.ShapeDtypeStruct) -> Array:
  """Counts the live weights of one leaf; returns int32 of the shape of its budget."""
  rows = len(stacked_axes(budget))
  return count(rows_first(mask, budget), rows).reshape(budget.shape)


def size_per_live(mask: Array, budget: Array | jax.ShapeDtypeStruct) -> Array:
  """Computes the inverse density of each layer of one leaf, for products with the leaf.

  size_l / max(live_l, 1)

  Args:
    mask: bool array.
    budget: the budget of the leaf; its shape says which axes stack layers.

  Returns:
    float32 (float64 in x64 mode) of the rank of `mask`, with length 1 along the axes
    that do not stack layers.
  """
  wide = jnp.result_type(float)
  size = jnp.asarray(mask.size // math.prod(budget.shape), wide)
  ratio = size / jnp.maximum(live_in(mask, budget), 1).astype(wide)
  return ratio.reshape(*budget.shape, *[1] * (mask.ndim - len(budget.shape)))


def layer_sizes(masks: PyTree, budgets: PyTree) -> list[int]:
  """Lists the sizes of the layers as Python integers, in the order of `to_vector`."""
  sizes = []
  for mask, budget in zip(
    jax.tree.leaves(masks), jax.tree.leaves(budgets), strict=True
  ):
    rows = budget.size
    sizes += [mask.size // rows] * rows
  return sizes


def to_vector(tree: PyTree) -> Array:
  """Concatenates budgets to one vector (layers,), in the order of the leaves' rows."""
  vectors = [jnp.ravel(replicated(x)) for x in jax.tree.leaves(tree)]
  return jnp.concatenate(vectors)


def from_vector(vector: Array, like: PyTree) -> PyTree:
  """Splits a vector (layers,) into the leaves of `like`; inverts `to_vector`."""
  leaves, treedef = jax.tree.flatten(like)
  parts, start = [], 0
  for leaf in leaves:
    part = vector[start : start + leaf.size]
    parts.append(part.reshape(leaf.shape))
    start += leaf.size
  return treedef.unflatten(parts)


def mean_scores(scores: PyTree, masks: PyTree, budgets: PyTree) -> Array:
  """Computes the mean score of each layer's live weights, for any sharding the same.

  mean_l = sum_{i live} max(s_i, 0) / n_live

  Call it in x64 mode. Scores are summed as fixed-point integers with 29 bits for the
  largest score of a layer, so the sum does not depend on its order. A float sum differs
  in the last bits between one device and eight, and the budgets would differ too.

  Args:
    scores: tree of floats.
    masks: tree of bool arrays.
    budgets: tree of int32, whose shapes say which axes stack layers; see
      `core/_stacked.py`.

  Returns:
    float64 (layers,); 0 for a layer without live weights.
  """

  def mean(score, mask, budget):
    rows = len(stacked_axes(budget))
    live = jnp.maximum(live_in(mask, budget), 1).astype(jnp.float64)
    score, mask = rows_first(score, budget), rows_first(mask, budget)
    score = jnp.where(mask, jnp.maximum(score.astype(jnp.float32), jnp.float32(0)), 0)
    top = largest(score, rows)
    # The scale is a power of two, made from the bits of the largest score's exponent,
    # so that the multiplication does not round.
    exponent = (lax.bitcast_convert_type(top, jnp.int32) >> 23) - 127
    shift = jnp.clip(_SCORE_BITS - 1 - exponent, -126, 126)
    factor = lax.bitcast_convert_type((shift + 127) << 23, jnp.float32)
    per_row = lax.expand_dims(factor, range(rows, mask.ndim)) if rows else factor
    fixed = (score * per_row).astype(jnp.uint32)
    sums = total(fixed, rows).astype(jnp.float64).reshape(budget.shape)
    return sums / live / factor.astype(jnp.float64).reshape(budget.shape)

  with jax.enable_x64(True):
    return to_vector(jax.tree.map(mean, scores, masks, budgets))
