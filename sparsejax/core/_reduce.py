"""Reductions of whole tensors in a form that XLA's CPU backend vectorizes.

On CPU, XLA reduces a tensor to a scalar one element at a time; the same holds for
several axes at once. It is two to ten times faster to first count runs of adjacent
elements along the second to last axis, in bytes. Other platforms use the plain
reduction, which communicates only the scalar between devices.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

Array = jax.Array


def count(x: Array, rows: int = 0) -> Array:
  """Counts the elements that are True.

  Args:
    x: bool array.
    rows: how many leading axes to keep.

  Returns:
    int32 of shape x.shape[:rows].
  """

  def plain(x):
    return jnp.sum(x, axis=tuple(range(rows, x.ndim)), dtype=jnp.int32)

  run = _run(x, rows)

  def by_columns(x):
    if run:
      x = jnp.sum(_split(x, run), axis=-2, dtype=jnp.uint8)
      if x.ndim - rows > 2:
        return plain(x.astype(jnp.int32))
      # Without the barriers the compiler merges the reductions into one, which takes
      # 2 to 4 times as long.
      x = lax.optimization_barrier(x)
      columns = jnp.sum(x, axis=-2, dtype=jnp.uint32)
      columns = lax.optimization_barrier(columns)
      return jnp.sum(columns.astype(jnp.int32), axis=-1, dtype=jnp.int32)
    short = _length(x, rows) < 2**16
    counter = jnp.uint16 if short else jnp.uint32
    columns = jnp.sum(x, axis=tuple(range(rows, x.ndim - 1)), dtype=counter)
    return jnp.sum(columns.astype(jnp.int32), axis=-1, dtype=jnp.int32)

  return replicated(_choose(plain, by_columns, x, rows))


def replicated(x: Array) -> Array:
  """Replicates a per-layer or per-unit array; explicit mesh axes require it.

  If the axis that stacks layers or units is sharded, then so are the results of a
  reduction, and they cannot be concatenated with those of other tensors. With automatic
  axes the compiler takes care of it.

  Args:
    x: an array with one number per layer or unit.

  Returns:
    The same array, replicated.
  """
  sharding = getattr(jax.typeof(x), "sharding", None)
  if sharding is None or all(axis is None for axis in sharding.spec):
    return x
  everywhere = PartitionSpec(*[None] * x.ndim)
  return jax.sharding.reshard(x, NamedSharding(sharding.mesh, everywhere))


def total(x: Array, rows: int = 0) -> Array:
  """Sums integers below 2^29 exactly; call it in x64 mode.

  Args:
    x: uint32 array.
    rows: how many leading axes to keep.

  Returns:
    int64 of shape x.shape[:rows].
  """
  axes = tuple(range(rows, x.ndim))

  def plain(x):
    return jnp.sum(x.astype(jnp.int64), axis=axes)

  def by_runs(x):
    # Eight numbers below 2^29 cannot overflow 32 bits.
    x = jnp.sum(_split(x, run), axis=-2, dtype=jnp.uint32)
    return plain(lax.optimization_barrier(x))

  run = _run(x, rows, 8)
  if not run:
    return replicated(plain(x))
  return lax.platform_dependent(x, cpu=by_runs, default=plain)


def largest(x: Array, rows: int = 0) -> Array:
  """Computes the maximum.

  Args:
    x: array.
    rows: how many leading axes to keep.

  Returns:
    Array of shape x.shape[:rows].
  """

  def plain(x):
    return jnp.max(x, axis=tuple(range(rows, x.ndim)))

  def by_columns(x):
    if run:
      x = jnp.max(_split(x, run), axis=-2)
      return plain(lax.optimization_barrier(x))
    columns = jnp.max(x, axis=tuple(range(rows, x.ndim - 1)))
    # Without the barrier the compiler merges the two reductions into one.
    return jnp.max(lax.optimization_barrier(columns), axis=-1)

  run = _run(x, rows)
  return replicated(_choose(plain, by_columns, x, rows))


def _choose(plain: Callable, by_columns: Callable, x: Array, rows: int) -> Array:
  if x.ndim - rows < 2 or _length(x, rows) < 8:
    return plain(x)
  return lax.platform_dependent(x, cpu=by_columns, default=plain)


def _run(x: Array, rows: int, longest: int = 32) -> int:
  """Returns the length of the runs to cut the second to last axis into; 0 for no cut.

  The number of runs is a multiple of eight, so that up to eight shards of the axis have
  whole runs. Arrays sharded over explicit axes are not cut.
  """
  if x.ndim - rows < 2:
    return 0
  sharding = getattr(jax.typeof(x), "sharding", None)
  if sharding is not None and any(axis is not None for axis in sharding.spec):
    return 0
  runs = range(longest, longest // 4 - 1, -1)
  return next((n for n in runs if x.shape[-2] % (8 * n) == 0), 0)


def _split(x: Array, run: int) -> Array:
  return x.reshape(*x.shape[:-2], x.shape[-2] // run, run, x.shape[-1])


def _length(x: Array, rows: int) -> int:
  length = 1
  for n in x.shape[rows:-1]:
    length *= n
  return length
