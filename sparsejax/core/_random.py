"""Random numbers that lie where their tensor lies."""

import jax
import jax.numpy as jnp

from sparsejax.core._alike import laid_like

Array = jax.Array


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
  return laid_like(values, x)


def true_like(x: Array) -> Array:
  """A bool array of ones with the shape and the sharding of another array."""
  return laid_like(jnp.ones_like(x, dtype=bool), x)


def leaf_keys(key: Array, tree) -> list[Array]:
  """One key a leaf, by its place in the tree."""
  return [jax.random.fold_in(key, i) for i, _ in enumerate(jax.tree.leaves(tree))]
