"""Reductions of whole tensors that XLA's CPU backend vectorizes.

Reducing a tensor straight to a scalar runs one element at a time on CPU, and so does
reducing several axes at once. Counting runs of the last axis but one in bytes first
is two to ten times faster. Accelerators get the plain reduction, whose only traffic
between devices is the scalar.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

Array = jax.Array


def count(x: Array, rows: int = 0) -> Array:
  """Counts True.

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
      # Without the barriers the compiler folds the reductions into one: 2 to 4 times.
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
  """Gives numbers of layers or units to all devices, as explicit axes want it said.

  Those of a tensor whose layers or units are spread over devices are spread too, and
  could not be put together with other tensors'. On automatic axes the compiler sees to
  it.

  Args:
    x: one number a layer or a unit.

  Returns:
    The same.
  """
  sharding = getattr(jax.typeof(x), "sharding", None)
  if sharding is None or all(axis is None for axis in sharding.spec):
    return x
  everywhere = PartitionSpec(*[None] * x.ndim)
  return jax.sharding.reshard(x, NamedSharding(sharding.mesh, everywhere))


def total(x: Array, rows: int = 0) -> Array:
  """Sums integers below 2^29 exactly.

  Args:
    x: uint32 array.
    rows: how many leading axes to keep.

  Returns:
    int64 of shape x.shape[:rows]. Call under x64.
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
  """The maximum.

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
    # Without the barrier the compiler folds the two reductions into one.
    return jnp.max(lax.optimization_barrier(columns), axis=-1)

  run = _run(x, rows)
  return replicated(_choose(plain, by_columns, x, rows))


def _choose(plain: Callable, by_columns: Callable, x: Array, rows: int) -> Array:
  if x.ndim - rows < 2 or _length(x, rows) < 8:
    return plain(x)
  return lax.platform_dependent(x, cpu=by_columns, default=plain)


def _run(x: Array, rows: int, longest: int = 32) -> int:
  """How many rows to count at once: a divisor of the last axis but one, or 0.

  A multiple of eight runs, so that up to eight shards of the axis hold whole ones.
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
