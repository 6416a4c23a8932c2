"""The dtypes to compute in, such as that in which `optax.apply_updates` adds."""

import jax
import jax.numpy as jnp

from sparsejax.core._select import select

Array = jax.Array


def widened(x: Array) -> Array:
  """Casts an array to float32, unless it is float64.

  Args:
    x: float, of any dtype.

  Returns:
    float32, or float64 for float64.

  Example:
    >>> import jax.numpy as jnp
    >>> widened(jnp.ones(1, jnp.bfloat16)).dtype
    dtype('float32')
  """
  return x if jnp.finfo(x.dtype).bits > 32 else x.astype(jnp.float32)


def sum_dtype(param: Array, update: Array) -> jnp.dtype:
  """Returns the dtype in which `optax.apply_updates` adds an update to a parameter.

  `optax.apply_updates` computes `(p + u).astype(p.dtype)`, so the sum has the wider of
  the two dtypes, under strict promotion too.

  Args:
    param: float, of any dtype.
    update: float, of any dtype.

  Returns:
    A dtype that holds all values of both.

  Example:
    >>> import jax.numpy as jnp
    >>> sum_dtype(jnp.ones(1, jnp.float16), jnp.ones(1, jnp.bfloat16))
    dtype('float32')
  """
  with jax.numpy_dtype_promotion("standard"):
    return jnp.promote_types(param.dtype, update.dtype)


def update_or_zero(mask: Array, update: Array, param: Array) -> Array:
  """Replaces the update of each masked weight by the one that sets it to zero.

  u' = u where m, else -p, in the dtype of p + u

  In a narrower dtype -p would be rounded, and p + u' would be the rounding error. The
  sums of live weights are the same as with `update` itself.

  Args:
    mask: bool, True = live.
    update: float, of the mask's shape.
    param: float, of the mask's shape; its dtype may differ from that of `update`.

  Returns:
    Array of the mask's shape, in the dtype of `sum_dtype(param, update)`.

  Example:
    >>> import jax.numpy as jnp
    >>> p, u = jnp.array([1.001, 1.001]), jnp.ones(2, jnp.bfloat16)
    >>> p + update_or_zero(jnp.array([True, False]), u, p)
    Array([2.001, 0.   ], dtype=float32)
  """
  dtype = sum_dtype(param, update)
  return select(mask, update.astype(dtype), -param.astype(dtype))


def updated(param: Array, update: Array) -> Array:
  """Computes the parameter after an update, bit for bit as optax does.

  p' = p + u, rounded once, to the parameter's dtype

  Args:
    param: float, of any dtype.
    update: float, of the parameter's shape and any dtype.

  Returns:
    Array like `param`.

  Example:
    >>> import jax.numpy as jnp
    >>> updated(jnp.ones(1, jnp.bfloat16), jnp.full(1, -1.001)).item() < 0
    True
  """
  dtype = sum_dtype(param, update)
  return (param.astype(dtype) + update.astype(dtype)).astype(param.dtype)
