"""Arrays and random numbers with the sharding of another array."""

import jax
import jax.numpy as jnp

Array = jax.Array


def shard_like(values: Array, x: Array) -> Array:
  """The same values, with the sharding of another array.

  y_i = values_i  if x_i = x_i or x_i != x_i,  0 otherwise

  What depends on no data, such as zeros and random numbers, the compiler is free to put
  whole on every device. An elementwise operation that reads both arrays ties their
  layouts. Its condition always holds (the second half for NaN), which XLA does not
  fold. Needed under `jit` alone; it is fused into what follows. On explicit axes the
  types say how values lie, but a program that reads none of its arguments runs on one
  device.

  Args:
    values: an array.
    x: of the same shape.

  Returns:
    An array equal to `values`, of its dtype.
  """
  if not values.ndim:
    return values
  sharding = getattr(jax.typeof(x), "sharding", None)
  if sharding is not None and any(axis is not None for axis in sharding.spec):
    values = jax.sharding.reshard(values, sharding)
  x = jax.lax.stop_gradient(x)
  if not jnp.issubdtype(x.dtype, jnp.floating):
    x = x.astype(jnp.float32)  # of integers XLA folds it
  return jnp.where((x == x) | (x != x), values, jnp.zeros_like(values))


def uniform_like(key: Array, x: Array) -> Array:
  """Uniform floats with the shape and the sharding of another array.

  A draw depends on no data, so the compiler is free to put it on one device, and
  every mask made from it; the values do not depend on the layout either way.

  Args:
    key: a PRNG key.
    x: the array to imitate.

  Returns:
    float32 in [0, 1), of x's shape.
  """
  sharding = getattr(jax.typeof(x), "sharding", None)
  if sharding is not None and any(axis is not None for axis in sharding.spec):
    return jax.random.uniform(key, x.shape, jnp.float32, out_sharding=sharding)
  values = jax.random.uniform(key, x.shape, jnp.float32)
  return shard_like(values, x)


def true_like(x: Array) -> Array:
  """A bool array of ones with the shape and the sharding of another array."""
  return shard_like(jnp.ones_like(x, dtype=bool), x)


def leaf_keys(key: Array, tree) -> list[Array]:
  """One key a leaf, by its place in the tree."""
  return [jax.random.fold_in(key, i) for i, _ in enumerate(jax.tree.leaves(tree))]
