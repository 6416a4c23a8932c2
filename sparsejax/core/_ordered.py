"""Floats as unsigned integers of the same order, and their bytes."""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def ordered_bits(x: Array, where: Array | None = None) -> Array:
  """Maps floats to unsigned integers of the same order.

  Both zeros map to one value, subnormals keep their order (whatever the hardware
  flushes), and NaN and positions outside `where` map to 0, below -inf.

  Args:
    x: floats of any shape; float64 under x64.
    where: bool array of x's shape; False marks positions that do not take part.

  Returns:
    uint32 array of x's shape (uint64 for float64).
  """
  bits = jnp.finfo(x.dtype).bits
  if bits < 16:  # every float8 is exact in bfloat16
    x, bits = x.astype(jnp.bfloat16), 16
  word = jnp.uint64 if bits == 64 else jnp.uint32
  raw = {16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}[bits]
  b = lax.bitcast_convert_type(x, raw).astype(word)
  inf = lax.bitcast_convert_type(jnp.asarray(jnp.inf, x.dtype), raw).astype(word)
  sign = jnp.asarray(1 << (bits - 1), word)
  magnitude = b & (sign - jnp.asarray(1, word))
  valid = magnitude <= inf
  if where is not None:
    valid = valid & where
  image = jnp.where(b >= sign, sign - magnitude, sign | magnitude)
  return jnp.where(valid, image, jnp.zeros_like(image))


def byte_at(word: Array, decided: Array, shift: Array) -> tuple[Array, Array]:
  """The byte of `word` at `shift`, and whether all higher bytes equal `decided`'s."""
  eight = jnp.asarray(8, word.dtype)
  same = ((word ^ decided) >> shift) >> eight == 0
  return (word >> shift) & jnp.asarray(255, word.dtype), same
