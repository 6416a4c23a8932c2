"""A training state as arrays by name, as checkpoints hold it."""

from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def path_name(path: Any) -> str:
  """A leaf's path with slashes between its parts."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(state: PyTree) -> dict[str, jax.Array]:
  """Names each array by its path; keys become their data, which all can read.

  Args:
    state: a tree of arrays, typed PRNG keys among them.

  Returns:
    The arrays by name.

  Raises:
    ValueError: two have the same path.

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
  """Undoes `flatten`.

  Args:
    target: a tree like the state, abstract or not.
    arrays: by name, one for each leaf of the target but those that are `optional`.

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
  """Whether a state may lack an array, which is then all True.

  Checkpoints from before `sj.mark_dead` do not say when dense gradients are needed; the
  first step after them takes them to be, and says it anew.
  """
  return "dense_gradients" in name.split("/")


def describe(arrays: dict[str, jax.Array]) -> dict[str, str]:
  """The dtype and shape of each array, such as `"float32[2, 3]"`."""
  return {name: f"{x.dtype}{list(x.shape)}" for name, x in arrays.items()}


def _is_key(x: Any) -> bool:
  return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
