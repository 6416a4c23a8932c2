"""The best inputs of every neuron, found where they lie."""

import math

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def top_k_along(key: Array, k: Array, axes: tuple[int, ...]) -> Array:
  """Marks the k largest keys along some axes, at each place of the others.

  Bisects on the keys' bits and, among equal ones, on their index: only counts are
  reduced along the axes.

  Args:
    key: unsigned integers, as `ordered_bits` makes them; 0 is never taken.
    k: int32, of the shape of `key` or 1 along any axis.
    axes: where the candidates of one selection lie.

  Returns:
    bool array of the shape of `key`; ties go to the lowest index along the axes.
  """
  axes = tuple(axis % key.ndim for axis in axes)

  def count(mask):
    return jnp.sum(mask, axes, dtype=jnp.int32, keepdims=True)

  def threshold(x, missing, bits, candidates):
    """The largest t such that enough candidates are t or more."""
    one = jnp.ones((), x.dtype)

    def decide(i, t):
      bit = one << (bits - 1 - i).astype(x.dtype)
      reached = count(candidates & (x >= (t | bit)))
      return jnp.where(reached >= missing, t | bit, t)

    start = jnp.zeros_like(count(candidates) + missing, x.dtype)
    return lax.fori_loop(jnp.int32(0), jnp.int32(bits), decide, start)

  valid = key > 0
  level = threshold(key, k, 8 * key.dtype.itemsize, valid)
  above, tied = valid & (key > level), valid & (key == level)
  length = math.prod(key.shape[axis] for axis in axes)
  index, stride = jnp.zeros((1,) * key.ndim, jnp.uint32), 1
  for axis in sorted(axes, reverse=True):
    shape = tuple(n if i == axis else 1 for i, n in enumerate(key.shape))
    iota = lax.broadcasted_iota(jnp.uint32, shape, axis)
    index, stride = index + iota * jnp.uint32(stride), stride * key.shape[axis]
  early = jnp.uint32(length - 1) - index
  last = threshold(early, k - count(above), length.bit_length(), tied)
  return above | (tied & (early >= last))
