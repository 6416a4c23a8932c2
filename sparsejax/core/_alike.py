"""Arrays that lie over devices as another array does."""

import jax
import jax.numpy as jnp

Array = jax.Array


def laid_like(values: Array, x: Array) -> Array:
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
