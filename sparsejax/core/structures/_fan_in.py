"""Top-k selection along some axes, for the inputs of each neuron."""

import math

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def top_k_along(key: Array, k: Array, axes: tuple[int, ...]) -> Array:
  """Selects the k largest keys along some axes, for each index of the other axes.

  It bisects on the bits of the keys, and among equal keys on the bits of their index.
  Only counts are reduced along the axes.

  Args:
    key: unsigned integers, as `ordered_bits` makes them; 0 is never selected.
    k: int32, of the shape of `key`, where axes may have length 1.
    axes: the axes along which the candidates of one selection are.

  Returns:
    bool array of the shape of `key`; ties go to the lowest index along the axes.
  """
  axes = tuple(axis % key.ndim for axis in axes)

  def count(mask):
    return jnp.sum(mask, axes, dtype=jnp.int32, keepdims=True)

  def threshold(x, missing, bits, candidates):
    """Finds the largest t such that at least `missing` candidates are t or more."""
    one = jnp.ones((), x.dtype)

    def decide(i, t):
      bit = one << (bits - 1 - i).astype(x.dtype)
      reached = count(candidates & (x >= (t | bit)))
      return jnp.where(reached >= missing, t | bit, t)

    start = jnp.zeros_like(count(candidates) + missing, x.dtype)
    return lax.fori_loop(jnp.int32(0), jnp.int32(bits), decide, start)

  # Selects the keys above the threshold; keys equal to it are ties.
  valid = key > 0
  level = threshold(key, k, 8 * key.dtype.itemsize, valid)
  above, tied = valid & (key > level), valid & (key == level)
  # Among the ties, selects those with the lowest index along the axes.
  length = math.prod(key.shape[axis] for axis in axes)
  index, stride = jnp.zeros((1,) * key.ndim, jnp.uint32), 1
  for axis in sorted(axes, reverse=True):
    shape = tuple(n if i == axis else 1 for i, n in enumerate(key.shape))
    iota = lax.broadcasted_iota(jnp.uint32, shape, axis)
    index, stride = index + iota * jnp.uint32(stride), stride * key.shape[axis]
  early = jnp.uint32(length - 1) - index
  last = threshold(early, k - count(above), length.bit_length(), tied)
  return above | (tied & (early >= last))
