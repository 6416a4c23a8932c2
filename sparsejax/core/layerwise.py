"""Selection in every layer of a tree at once, each layer with its own count."""

from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.core.budgets import to_vector
from sparsejax.core.reduce import count
from sparsejax.core.selection import select

Array = jax.Array
PyTree = Any


def top_k_masks(scores: PyTree, counts: PyTree, where: PyTree) -> PyTree:
  """`top_k_mask` in every layer of a tree.

  Args:
    scores: tree of floats.
    counts: tree of int32: a scalar a leaf, or (rows,) where the leading axis of the
      leaf stacks layers, each row then with its own count.
    where: tree of bool arrays, the candidates.

  Returns:
    tree of bool arrays.
  """
  leaves, treedef = jax.tree.flatten(scores)
  rows = [c.ndim for c in jax.tree.leaves(counts)]
  k = jnp.maximum(to_vector(counts), 0)
  return treedef.unflatten(select(leaves, k, jax.tree.leaves(where), rows))


def usable(scores: PyTree, where: PyTree) -> Array:
  """Whether no candidate's score is NaN or +inf; -inf is a legal "never".

  Args:
    scores: tree of floats.
    where: tree of bool arrays, the candidates.

  Returns:
    bool scalar.
  """
  bad = jax.tree.map(
    lambda s, w: count(w & ~(s < jnp.inf)),  # NaN compares False
    scores,
    where,
  )
  return jnp.all(jnp.stack(jax.tree.leaves(bad)) == 0)
