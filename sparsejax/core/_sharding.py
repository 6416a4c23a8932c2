"""Functions that give arrays and random numbers the sharding of another array."""

import functools

import jax
import jax.numpy as jnp

Array = jax.Array


def shard_like(values: Array, x: Array) -> Array:
  """Gives `values` the sharding of `x`.

  y_i = values_i  if x_i = x_i or x_i != x_i,  0 otherwise

  The compiler may replicate arrays that depend on no data, such as zeros and random
  numbers, on every device. An elementwise operation that reads both arrays makes it use
  one sharding for both. The condition is always true (its second half for NaN), but XLA
  does not simplify it. It is needed under `jit` only, and is fused into the next
  operation. With explicit mesh axes the sharding is part of the type; the operation is
  needed there too, because a program that reads none of its arguments runs on one
  device.

  Args:
    values: an array.
    x: an array of the same shape.

  Returns:
    An array equal to `values`, of its dtype, with the sharding of `x`.
  """
  if not values.ndim:
    return values
  sharding = getattr(jax.typeof(x), "sharding", None)
  if sharding is not None and any(axis is not None for axis in sharding.spec):
    values = jax.sharding.reshard(values, sharding)
  x = jax.lax.stop_gradient(x)
  if not jnp.issubdtype(x.dtype, jnp.floating):
    x = x.astype(jnp.float32)  # for integers, XLA would simplify the condition
  return jnp.where((x == x) | (x != x), values, jnp.zeros_like(values))


def uniform_like(key: Array, x: Array) -> Array:
  """Draws uniform floats with the shape and sharding of another array.

  The values do not depend on the sharding. Without it, the compiler could replicate the
  draw, which depends on no data, and every mask made from it.

  Args:
    key: a PRNG key.
    x: the array whose shape and sharding are used.

  Returns:
    float32 in [0, 1), of x's shape.
  """
  sharding = getattr(jax.typeof(x), "sharding", None)
  if sharding is not None and any(axis is not None for axis in sharding.spec):
    return jax.random.uniform(key, x.shape, jnp.float32, out_sharding=sharding)
  values = jax.random.uniform(key, x.shape, jnp.float32)
  return shard_like(values, x)


@functools.partial(jax.jit, inline=True)
def true_like(x: Array) -> Array:
  """Makes a bool array of ones with the shape and sharding of another array."""
  return shard_like(jnp.ones_like(x, dtype=bool), x)


def leaf_keys(key: Array, tree) -> list[Array]:
  """Makes one key per leaf, from its index in flattening order."""
  return [jax.random.fold_in(key, i) for i, _ in enumerate(jax.tree.leaves(tree))]
