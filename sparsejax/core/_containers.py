"""Boxes around parameters, and the placeholder that optax passes to `init`."""

import functools
from typing import Any

import jax
import optax

PyTree = Any


def is_box(node: Any) -> bool:
  """Returns whether a node is a box: one array in `value`, with metadata.

  Boxes are flax's `nn.Partitioned` and `nn.LogicallyPartitioned`, and nnx's variables.
  The metadata, such as the names of axes, describes the array.

  Args:
    node: a node of a pytree.

  Returns:
    Whether its only child is an array, None or another box, in an attribute `value`.

  Example:
    >>> import jax.numpy as jnp
    >>> is_box({"value": jnp.ones(3)})
    False
  """
  if node is None or isinstance(node, (dict, list, tuple, jax.Array)):
    return False
  children = jax.tree_util.tree_leaves_with_path(
    node, is_leaf=lambda child: child is not node
  )
  if [path for path, _ in children] != [(jax.tree_util.GetAttrKey("value"),)]:
    return False
  [(_, child)] = children
  return jax.tree.structure(child).num_nodes == 1 or is_box(child)


def unboxed(tree: PyTree) -> PyTree:
  """Replaces every box by its content.

  Args:
    tree: any pytree.

  Returns:
    The same tree with the content of each box in its place.
  """
  return jax.tree.map(_content, tree, is_leaf=is_box)


def without_empty_boxes(tree: PyTree) -> PyTree:
  """Replaces every box without an array by its content.

  Args:
    tree: any pytree.

  Returns:
    The same tree, with None and `optax.MaskedNode` outside of boxes. Boxes with an
    array are kept.
  """

  def open_empty(node):
    content = _content(node)
    return node if jax.tree.leaves(content) else content

  return jax.tree.map(open_empty, tree, is_leaf=is_box)


def boxed_like(tree: PyTree, like: PyTree) -> PyTree:
  """Puts the leaves of a tree into the containers of another one, boxes included.

  Args:
    tree: a pytree with as many leaves as `like`, in the same order.
    like: any pytree.

  Returns:
    The leaves of `tree` in the structure of `like`.
  """
  return jax.tree.structure(like).unflatten(jax.tree.leaves(tree))


def _content(node: Any) -> Any:
  while is_box(node):
    [(_, node)] = jax.tree_util.tree_leaves_with_path(
      node, is_leaf=lambda child, node=node: child is not node
    )
  return node


@functools.cache
def _placeholder() -> type:
  seen = []

  def init(params):
    seen.append(params)
    return ()

  optax.tree_map_params(init, lambda leaf: leaf, ())
  return type(seen[0])


def is_placeholder(params: PyTree) -> bool:
  """Returns whether `init` was called by `optax.tree_map_params`, without params.

  `optax.tree_map_params` passes an empty node in place of the params to `init`. In the
  state that `init` returns, the node marks the subtrees that are like the params; a
  leaf marks anything else.

  Args:
    params: the argument of `init`.

  Returns:
    Whether `params` is that node.

  Example:
    >>> import jax.numpy as jnp
    >>> is_placeholder({"kernel": jnp.ones((2, 2))})
    False
  """
  return isinstance(params, _placeholder())
