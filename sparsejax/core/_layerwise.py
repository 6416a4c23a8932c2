"""Selection in every layer of a tree at once, each layer with its own count."""

from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.core._budgets import to_vector
from sparsejax.core._reduce import count
from sparsejax.core._selection import select
from sparsejax.core._stacked import rows_back, rows_first, stacked_axes
from sparsejax.core._tree import path_string

Array = jax.Array
PyTree = Any


def top_k_masks(scores: PyTree, counts: PyTree, where: PyTree) -> PyTree:
  """`top_k_mask` in every layer of a tree.

  Args:
    scores: tree of floats.
    counts: tree of int32: a scalar per leaf, or one number per layer where the leaf
      stacks layers, (rows,) along its leading axis; see `core.stacked`.
    where: tree of bool arrays, the candidates.

  Returns:
    tree of bool arrays.
  """
  leaves, treedef = jax.tree.flatten(scores)
  budgets = jax.tree.leaves(counts)
  rows = [len(stacked_axes(b)) for b in budgets]
  k = jnp.maximum(to_vector(counts), 0)
  keys = [rows_first(x, b) for x, b in zip(leaves, budgets, strict=True)]
  candidates = zip(jax.tree.leaves(where), budgets, strict=True)
  masks = select(keys, k, [rows_first(w, b) for w, b in candidates], rows)
  back = [rows_back(m, b) for m, b in zip(masks, budgets, strict=True)]
  return treedef.unflatten(back)


def usable(scores: PyTree, where: PyTree) -> Array:
  """Whether no candidate's score is NaN or +inf; -inf is a legal "never".

  Args:
    scores: tree of floats.
    where: tree of bool arrays, the candidates.

  Returns:
    bool scalar.

  Raises:
    ValueError: see `check_scores`.
  """
  check_scores(scores, where)
  bad = jax.tree.map(
    lambda s, w: count(w & ~(s < jnp.inf)),  # NaN compares False
    scores,
    where,
  )
  return jnp.all(jnp.stack(jax.tree.leaves(bad)) == 0)


def check_scores(scores: PyTree, where: PyTree, name: str = "score") -> None:
  """Raises ValueError unless scores, which may be a user's, are a float per weight.

  Args:
    scores: what a score gave.
    where: tree of bool arrays, one per kernel.
    name: the argument's name.

  Example:
    >>> check_scores({"a": jnp.ones(2)}, {"a": jnp.ones(3, bool)})
    Traceback (most recent call last):
      ...
    ValueError: score must give a float per weight, float[3] at 'a'; got float32[2].
  """
  found, expected = jax.tree.structure(scores), jax.tree.structure(where)
  if found != expected:
    raise ValueError(
      f"{name} must give a tree like the sparsified leaves, {expected}; got {found}."
    )
  for (path, mask), score in zip(
    jax.tree_util.tree_leaves_with_path(where), jax.tree.leaves(scores), strict=True
  ):
    shape, dtype = jnp.shape(score), jnp.result_type(score)
    if shape != mask.shape or not jnp.issubdtype(dtype, jnp.floating):
      raise ValueError(
        f"{name} must give a float per weight, float{list(mask.shape)} at "
        f"{path_string(path)!r}; got {dtype}{list(shape)}."
      )
