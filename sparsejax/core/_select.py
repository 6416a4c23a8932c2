"""Choosing between two arrays by a mask, at the speed of memory."""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
_WORDS = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}


@jax.custom_jvp
def select(mask: Array, on: Array, off: Array) -> Array:
  """`jnp.where(mask, on, off)`, bit for bit and derivative for derivative.

  w = -int(mask);  bits(y) = (bits(on) & w) | (bits(off) & ~w)

  XLA's CPU code for a select by bytes of floats costs more than the memory it moves,
  this does not; elsewhere such a step waits for memory alone. What a masked step costs
  is measured by `scripts/benchmarks/selection.py`.

  Args:
    mask: bools.
    on: floats, of the mask's shape.
    off: the same shape and dtype as `on`.

  Returns:
    Array like `on`.

  Example:
    >>> import jax.numpy as jnp
    >>> x = jnp.array([1.0, 2.0])
    >>> select(jnp.array([True, False]), x, -x)
    Array([ 1., -2.], dtype=float32)
  """
  if not (jnp.issubdtype(on.dtype, jnp.floating) and on.dtype.itemsize in _WORDS):
    return jnp.where(mask, on, off)
  word = _WORDS[on.dtype.itemsize]
  bits = lambda x: lax.bitcast_convert_type(x, word)
  live = -mask.astype(word)
  return lax.bitcast_convert_type((bits(on) & live) | (bits(off) & ~live), on.dtype)


@select.defjvp
def _(primals, tangents):
  mask, on, off = primals
  return select(mask, on, off), jnp.where(mask, tangents[1], tangents[2])
