"""Converts a training state to and from a dict of named arrays, for checkpoints."""

from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def path_name(path: Any) -> str:
  """Returns a leaf's path with slashes between its parts."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(state: PyTree) -> dict[str, jax.Array]:
  """Converts a state to a dict from path to array; PRNG keys become their raw data.

  Args:
    state: a tree of arrays, which may include typed PRNG keys.

  Returns:
    The arrays by slash-separated path.

  Raises:
    ValueError: if two arrays have the same path.

  Example:
    >>> flatten({"a": {"b": jnp.ones(1)}})
    {'a/b': Array([1.], dtype=float32)}
  """
  leaves = jax.tree_util.tree_leaves_with_path(state)
  named = {
    path_name(path): jax.random.key_data(x) if _is_key(x) else x for path, x in leaves
  }
  if len(named) != len(leaves):
    raise ValueError("two arrays of the state have the same path")
  return named


def unflatten(target: PyTree, arrays: dict[str, jax.Array]) -> PyTree:
  """Inverts `flatten`.

  Args:
    target: a tree like the state, abstract or not.
    arrays: the arrays by path; those that are `optional` may be missing.

  Returns:
    A tree like the target.
  """
  leaves, treedef = jax.tree_util.tree_flatten_with_path(target)
  restored = []
  for path, like in leaves:
    name = path_name(path)
    if name not in arrays and optional(name):
      restored.append(jnp.ones(like.shape, like.dtype))
      continue
    x = arrays[name]
    restored.append(jax.random.wrap_key_data(x) if _is_key(like) else x)
  return jax.tree.unflatten(treedef, restored)


def optional(name: str) -> bool:
  """Returns whether an array may be missing; `unflatten` then fills it with True.

  Checkpoints older than `sj.mark_dead` do not record whether the next step needs dense
  gradients. The first step after such a checkpoint computes them, and sets the value.
  """
  return "dense_gradients" in name.split("/")


def describe(arrays: dict[str, jax.Array]) -> dict[str, str]:
  """Returns the dtype and shape of each array, such as `"float32[2, 3]"`."""
  return {name: f"{x.dtype}{list(x.shape)}" for name, x in arrays.items()}


def _is_key(x: Any) -> bool:
  return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
