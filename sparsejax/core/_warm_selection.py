"""Selection that begins where the last one ended: for scores that move a little."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.core._reduce import count
from sparsejax.core._selection import ordered_bits, search, spread

Array = jax.Array
# What a full search costs in counts, about: a guess that is no better is given up.
_MOST = 16


class WarmStart(NamedTuple):
  """Where each layer's threshold was, on the ordered image of its scores.

  Attributes:
    key: uint32 (layers,).
    spacing: float32 (layers,), how far apart two scores are there, on average.
  """

  key: Array
  spacing: Array


class _State(NamedTuple):
  """A search by secants, for every layer."""

  step: Array  # int32 ()
  key: Array  # where to count next, or where the count was k
  low: Array  # more than k lie at or above it
  high: Array  # fewer than k do
  before: Array  # the key of the last count
  above: Array  # the last count
  spacing: Array  # what the next step reckons with
  sure: Array  # the last one over many scores, or 0
  done: Array


def initial_warm_start(layers: int) -> WarmStart:
  """What the first of many selections begins with.

  Args:
    layers: how many.

  Returns:
    A `WarmStart` that is improved before it is of use.
  """
  return WarmStart(jnp.full(layers, 1 << 31, jnp.uint32), jnp.full(layers, 64.0))


def warm_select(
  scores: Sequence[Array], k: Array, guess: WarmStart
) -> tuple[list[Array], WarmStart]:
  """The masks of `selection.select`, in a few counts if the guess is near.

  t' = t + (count(s >= t) - k) spacing,  until the count is k

  Any threshold with k scores at or above it selects the k largest, so a handful of
  secant steps from the last threshold do, in less than half the time of a full search,
  where scores are continuous and moved by one optimizer step. Where that does not end,
  as among ties, the full search follows: the masks are the same, bit for bit.

  Args:
    scores: float arrays of at most 32 bits, one a layer.
    k: int32 (layers,), at least 0.
    guess: of the last selection, or `initial_warm_start`.

  Returns:
    bool arrays of the shapes of `scores`, and the next guess.

  Example:
    >>> scores = [jnp.array([[3.0, 1.0, 3.0, 3.0]])]
    >>> start = initial_warm_start(1)
    >>> [mask], _ = warm_select(scores, jnp.array([2], jnp.int32), start)
    >>> mask
    Array([[ True, False,  True, False]], dtype=bool)
  """
  # One image for all formats: every float of 16 bits is a float of 32.
  keys = [ordered_bits(x.astype(jnp.float32)) for x in scores]
  rows = [0] * len(keys)

  def counts(t):
    found = [count(x >= b) for x, b in zip(keys, spread(t, keys, rows), strict=True)]
    return jnp.stack(found)

  def improve(s: _State) -> _State:
    n = counts(s.key)
    done = s.done | (n == k)
    low = jnp.where(n > k, jnp.maximum(s.low, s.key), s.low)
    high = jnp.where(n < k, jnp.minimum(s.high, s.key), s.high)
    moved = jnp.abs((s.key - s.before).astype(jnp.int32).astype(jnp.float32))
    fewer = jnp.abs(s.above - n).astype(jnp.float32)
    # The secant, at least one key a score; over a few scores it is mostly chance.
    secant = jnp.maximum(moved / jnp.maximum(fewer, 0.5), 1.0)
    chance = fewer < 16
    known = (s.step > 0) & ~s.done
    sure = jnp.where(known & ~chance, secant, s.sure)
    secant = jnp.where(chance, jnp.sqrt(secant * s.spacing), secant)
    spacing = jnp.where(known, secant, s.spacing)
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
  masks, key = search(keys, k, rows, 4, start=(end.key, end.done & (k > 0)))
  mean = jnp.sqrt(guess.spacing * end.spacing)
  spacing = jnp.where(end.sure > 0, end.sure, mean)
  return masks, WarmStart(jnp.where(k == 0, end.key, key), spacing)
