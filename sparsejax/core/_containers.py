"""Boxes around parameters, and the stand-in that optax passes for them."""

import functools
from typing import Any

import jax
import optax

PyTree = Any


def is_box(node: Any) -> bool:
  """Whether a node of a tree holds one array under `value` and says more about it.

  Such are flax's `nn.Partitioned` and `nn.LogicallyPartitioned` and the variables of
  nnx: what they say, such as the axes' names, is of the array in them.

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
  """Takes every array out of its box.

  Args:
    tree: any pytree.

  Returns:
    The same tree with what the boxes hold in their places.
  """
  return jax.tree.map(_content, tree, is_leaf=is_box)


def without_empty_boxes(tree: PyTree) -> PyTree:
  """Replaces every box without an array by what is in it.

  Args:
    tree: any pytree.

  Returns:
    The same tree with bare None and `optax.MaskedNode`; boxes with an array stay.
  """

  def open_empty(node):
    content = _content(node)
    return node if jax.tree.leaves(content) else content

  return jax.tree.map(open_empty, tree, is_leaf=is_box)


def boxed_like(tree: PyTree, like: PyTree) -> PyTree:
  """Gives the leaves of a tree the containers of another, boxes included.

  Args:
    tree: as many leaves as `like`, in the same order.
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
  """Whether `init` is called by `optax.tree_map_params`, with no params at all.

  It passes one empty node in the params' place, and takes what `init` makes of it for
  a map of the state: the node stands where the state has a tree like the params, and
  any leaf where it has something else.

  Args:
    params: what `init` was given.

  Returns:
    Whether it is that node.

  Example:
    >>> import jax.numpy as jnp
    >>> is_placeholder({"kernel": jnp.ones((2, 2))})
    False
  """
  return isinstance(params, _placeholder())
