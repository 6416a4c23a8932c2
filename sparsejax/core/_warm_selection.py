"""Top-k selection that starts from the threshold of the previous selection.

It is faster than a full search where scores change little between selections.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.core._reduce import count
from sparsejax.core._selection import ordered_bits, search, spread

Array = jax.Array
# The most secant steps. A full search costs about as many counts, so more of them would
# not pay.
_MOST = 16


class WarmStart(NamedTuple):
  """The thresholds of the previous selection, as keys of `ordered_bits`.

  Attributes:
    key: uint32 (layers,), the threshold of each layer.
    spacing: float32 (layers,), the mean distance of neighboring keys near it.
  """

  key: Array
  spacing: Array


class _State(NamedTuple):
  """The state of the secant search, for all layers."""

  step: Array  # int32 (): number of counts so far
  key: Array  # the key to count at next; of a layer that is done, its threshold
  low: Array  # more than k keys are at or above this one
  high: Array  # fewer than k keys are at or above this one
  before: Array  # the key of the last count
  above: Array  # the last count
  spacing: Array  # the estimate of the spacing that the next step uses
  sure: Array  # the last estimate from at least 16 keys, or 0
  done: Array  # whether exactly k keys are at or above `key`


def initial_warm_start(layers: int) -> WarmStart:
  """Returns the `WarmStart` for the first selection, when no threshold is known.

  Args:
    layers: the number of layers.

  Returns:
    A `WarmStart` with the key of 0.0 for every layer.
  """
  return WarmStart(
    jnp.full(layers, 1 << 31, jnp.uint32), jnp.full(layers, 64.0, jnp.float32)
  )


def warm_select(
  scores: Sequence[Array], k: Array, guess: WarmStart
) -> tuple[list[Array], WarmStart]:
  """Selects the k largest scores of each layer, starting from a guessed threshold.

  t' = t + (count(s >= t) - k) spacing,  until the count is k

  Any threshold with k scores at or above it selects the k largest. For scores without
  ties that have changed by one optimizer step, a few secant steps from the previous
  threshold find one, in less than half the time of a full search. Where they do not, as
  with ties, the full search follows. The masks are exactly those of
  `_selection.select`.

  Args:
    scores: float arrays of at most 32 bits, one per layer.
    k: int32 (layers,), at least 0.
    guess: the `WarmStart` that the previous selection returned, or
      `initial_warm_start`.

  Returns:
    bool arrays of the shapes of `scores`, and the `WarmStart` for the next selection.

  Example:
    >>> scores = [jnp.array([[3.0, 1.0, 3.0, 3.0]])]
    >>> start = initial_warm_start(1)
    >>> [mask], _ = warm_select(scores, jnp.array([2], jnp.int32), start)
    >>> mask
    Array([[ True, False,  True, False]], dtype=bool)
  """
  # Casting to float32 is exact for narrower floats, so all keys have one dtype.
  keys = [ordered_bits(x.astype(jnp.float32)) for x in scores]
  rows = [0] * len(keys)

  def counts(t):
    found = [count(x >= b) for x, b in zip(keys, spread(t, keys, rows), strict=True)]
    return jnp.stack(found)

  def improve(s: _State) -> _State:
    # Counts at the current key, and narrows the interval (low, high) of the threshold.
    n = counts(s.key)
    done = s.done | (n == k)
    low = jnp.where(n > k, jnp.maximum(s.low, s.key), s.low)
    high = jnp.where(n < k, jnp.minimum(s.high, s.key), s.high)
    # Estimates the spacing of the keys from the last two counts.
    moved = jnp.abs((s.key - s.before).astype(jnp.int32).astype(jnp.float32))
    fewer = jnp.abs(s.above - n).astype(jnp.float32)
    # The spacing is at least 1. An estimate from fewer than 16 keys is mostly noise, so
    # it is averaged (geometrically) with the previous one.
    secant = jnp.maximum(moved / jnp.maximum(fewer, 0.5), 1.0)
    chance = fewer < 16
    known = (s.step > 0) & ~s.done
    sure = jnp.where(known & ~chance, secant, s.sure)
    secant = jnp.where(chance, jnp.sqrt(secant * s.spacing), secant)
    spacing = jnp.where(known, secant, s.spacing)
    # Moves the key by the estimated distance to the threshold, or bisects the interval
    # if that leaves it.
    jump = jnp.clip((n - k).astype(jnp.float32) * spacing, -1e9, 1e9)
    jump = jump.astype(jnp.int32).astype(jnp.uint32)
    key = s.key + jump
    middle = low + ((high - low) >> 1)
    inside = (key > low) & (key < high)
    key = jnp.where(inside, key, middle)
    return _State(
      step=s.step + 1,
      key=jnp.where(done, s.key, key),
      low=low,
      high=high,
      before=s.key,
      above=n,
      spacing=spacing,
      sure=sure,
      done=done,
    )

  def going(s: _State) -> Array:
    return (s.step < _MOST) & jnp.any(~s.done & (s.high - s.low > 1))

  zero = jnp.zeros_like(guess.key)
  first = _State(
    step=jnp.int32(0),
    key=jnp.maximum(guess.key, jnp.uint32(1)),
    low=zero,
    high=~zero,
    before=zero,
    above=jnp.zeros_like(k),
    spacing=guess.spacing,
    sure=jnp.zeros_like(guess.spacing),
    done=k == 0,
  )
  end = lax.while_loop(going, improve, first)
  # Layers that are not done get the full search; it ends at once if all are done.
  masks, key = search(keys, k, rows, 4, start=(end.key, end.done & (k > 0)))
  # Without an estimate from many keys, the next spacing is a mean of old and new.
  mean = jnp.sqrt(guess.spacing * end.spacing)
  spacing = jnp.where(end.sure > 0, end.sure, mean)
  return masks, WarmStart(jnp.where(k == 0, end.key, key), spacing)
