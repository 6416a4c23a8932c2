"""The choice of the leaves that are sparsified, and trees that match the params."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.core import _kernels as kernels
from sparsejax.core._checks import check_callable, check_regex
from sparsejax.core._containers import is_box, unboxed, without_empty_boxes

PyTree = Any
_BOXED = jax.tree_util.GetAttrKey("value")
Where = PyTree | str | Callable[[str, jax.Array], bool] | None


def path_string(path: tuple) -> str:
  """Joins a key path with slashes and omits the final `value` of a box.

  Args:
    path: a key path of `jax.tree_util`.

  Returns:
    A string such as `"layers/0/kernel"`. A final attribute `value`, which nnx's
    variables and flax's partitioning boxes have, is omitted; a dictionary's key `value`
    is not.

  Example:
    >>> import jax
    >>> [(path, _)] = jax.tree_util.tree_leaves_with_path({"a": [1.0]})
    >>> path_string(path)
    'a/0'
    >>> [(path, _)] = jax.tree_util.tree_leaves_with_path({"a": {"value": 1.0}})
    >>> path_string(path)
    'a/value'
  """
  boxed = len(path) > 1 and path[-1] == _BOXED
  return _join(path[:-1] if boxed else path)


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
  """Lists the path and the value of each leaf, without the `value` of boxes.

  A box, such as a variable of nnx or a partitioning box of flax, is a node whose only
  field is `value`. The field `value` of a module that has other fields is kept.

  Args:
    tree: any pytree.

  Returns:
    (slash-separated path, leaf) for each leaf, in flattening order.

  Example:
    >>> named_leaves({"query": 1, "value": [2, 3]})
    [('query', 1), ('value/0', 2), ('value/1', 3)]
  """
  return [
    (_join((*path, *(() if is_box(node) else rest))), leaf)
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_box)
    for rest, leaf in jax.tree_util.tree_leaves_with_path(node)
  ]


def _join(path: tuple) -> str:
  names = [jax.tree_util.keystr((key,), simple=True) for key in path]
  return "/".join(name.lstrip(".") for name in names)


def why_dense(params: PyTree) -> list[str | None]:
  """Returns the reason why each leaf is dense by default, or None for kernels.

  Args:
    params: any pytree of arrays.

  Returns:
    A list in flattening order; `_kernels.why_dense` lists the reasons.

  Example:
    >>> import jax.numpy as jnp
    >>> why_dense({"b": jnp.ones((2, 3)), "w": jnp.ones((2, 3, 3))})
    ['bias', None]
  """
  # The highest rank among the leaves of each module.
  named = named_leaves(params)
  most: dict[str, int] = {}
  for path, leaf in named:
    module = path.rpartition("/")[0]
    most[module] = max(most.get(module, 0), len(leaf.shape))
  return [
    kernels.why_dense(path, leaf, most[path.rpartition("/")[0]]) for path, leaf in named
  ]


def matches(params: PyTree, where: Where, name: str = "where") -> list[bool]:
  """Evaluates a choice of leaves.

  Args:
    params: any pytree of arrays.
    where: a tree of bools with the structure of `params` (or a prefix of it); a regular
      expression, searched for in each slash-separated path; a function
      `(path, leaf) -> bool`; or None for the kernels, which are the leaves for which
      `why_dense` returns None.
    name: the argument's name in error messages.

  Returns:
    One bool per leaf, in flattening order.

  Raises:
    TypeError: `where` is none of these, or `params` has a leaf that is not an array.
    ValueError: `params` is empty, a tree of bools does not fit it, a string is not a
      regular expression, or nothing is selected.
  """
  leaves = named_leaves(params)
  if not leaves:
    raise ValueError("params must contain at least one array, got an empty tree.")
  check_arrays("params", params)
  check_where(name, where)
  paths = [path for path, _ in leaves]
  if where is None:
    chosen = [reason is None for reason in why_dense(params)]
  elif isinstance(where, str):
    pattern = re.compile(where)
    chosen = [bool(pattern.search(path)) for path in paths]
  elif callable(where):
    chosen = [bool(where(path, leaf)) for path, leaf in leaves]
  else:
    try:
      chosen = jax.tree.leaves(jax.tree.broadcast(where, params))
    except ValueError as e:
      raise ValueError(f"{name} must be a tree that fits params: {e}") from None
  if not any(chosen) and where is None:
    shapes = sorted({tuple(leaf.shape) for _, leaf in leaves})
    held = f"params contain {_few(paths)} of shapes {shapes[:6]}"
    if paths == [""]:
      held = f"params are one array of shape {shapes[0]}"
    raise ValueError(
      f"{name} must select at least one leaf, got none: by default these are "
      f"floating-point kernels of rank 2 or more, and {held}. Other leaves are chosen "
      f"by {name}=, all of them by {name}=lambda path, leaf: True."
    )
  if not any(chosen):
    raise ValueError(
      f"{name} must select at least one leaf, got none: {where!r} matches nothing "
      f"among {_few(paths)}."
    )
  return chosen


def check_where(
  name: str,
  where: Where,
  rule: str = "a tree of bools, a regex or a function of (path, leaf)",
) -> None:
  """Raises unless a value is a choice of leaves; see `matches`.

  Args:
    name: the argument's name.
    where: the value to check.
    rule: what it must be, in words.

  Raises:
    TypeError: the value is not a choice of leaves.
    ValueError: the value is a string but not a regular expression.
  """
  if isinstance(where, str):
    check_regex(name, where)
  elif callable(where):
    check_callable(name, where, "a function of (path, leaf)", 2)
  else:
    for flag in jax.tree.leaves(where):
      if not isinstance(flag, bool):
        raise TypeError(f"{name} must be {rule}, got {flag!r}.")


def is_array(leaf: Any) -> bool:
  """Returns whether a leaf is an array or an abstract value."""
  return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def without_statics(params: PyTree, updates: PyTree) -> PyTree:
  """Replaces non-array leaves of the params by None where the updates are None.

  Programs that use equinox pass their whole model. Its gradients are None at fields
  that contain integers or functions.

  Args:
    params: the params.
    updates: the gradients.

  Returns:
    The params; arrays are unchanged.
  """
  leaves, treedef = jax.tree.flatten(params)
  if all(map(is_array, leaves)):
    return params
  try:
    entries = treedef.flatten_up_to(updates)
  except ValueError:
    return params  # `check_update` raises for these
  return treedef.unflatten(
    None if update is None and not is_array(leaf) else leaf
    for leaf, update in zip(leaves, entries, strict=True)
  )


def check_arrays(name: str, tree: PyTree) -> None:
  """Raises TypeError unless every leaf of a tree is an array or an abstract value."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    if not is_array(leaf):
      advice = ""
      if name == "params":
        advice = (
          " Of a module with other leaves pass its arrays alone, as "
          "eqx.filter(model, eqx.is_inexact_array) of equinox gives them."
        )
      raise TypeError(
        f"{name} must be a tree of arrays, got {leaf!r} at {path_string(path)!r}."
        + advice
      )


def check_masks(masks: PyTree, name: str = "masks") -> None:
  """Raises TypeError unless every leaf of a tree is a bool array or an abstract one."""
  check_arrays(name, masks)
  for path, leaf in jax.tree_util.tree_leaves_with_path(masks):
    if leaf.dtype != bool:
      raise TypeError(
        f"{name} must be bool, got {leaf.dtype} at {path_string(path)!r}."
      )


def selected(params: PyTree, where: Where) -> list[bool]:
  """Evaluates a choice of leaves and checks that the chosen ones can be sparsified.

  Args:
    params: any pytree of arrays.
    where: as in `matches`.

  Returns:
    One bool per leaf, in flattening order.

  Raises:
    TypeError: as in `matches`; or a chosen leaf is not floating point.
    ValueError: as in `matches`; or a chosen leaf is empty.
  """
  chosen = matches(params, where)
  for (path, leaf), flag in zip(named_leaves(params), chosen, strict=True):
    if not flag:
      continue
    if not jnp.issubdtype(getattr(leaf, "dtype", jnp.int32), jnp.floating):
      raise TypeError(
        "where must select floating-point leaves, got "
        f"{getattr(leaf, 'dtype', type(leaf).__name__)} at {path!r}."
      )
    if leaf.size == 0:
      raise ValueError(
        f"where must select leaves that contain weights, got shape {leaf.shape} at "
        f"{path!r}."
      )
  return chosen


def choose(params: PyTree, chosen: list[bool]) -> PyTree:
  """Replaces every leaf that is not chosen by None."""
  leaves, treedef = jax.tree.flatten(params)
  kept = [leaf if c else None for leaf, c in zip(leaves, chosen, strict=True)]
  return without_empty_boxes(treedef.unflatten(kept))


def merge(params: PyTree, kernels: PyTree) -> PyTree:
  """Replaces the leaves of `params` by those of `kernels` that are not None.

  Inverts `choose`.
  """
  leaves, treedef = jax.tree.flatten(params)
  entries = jax.tree.structure(unboxed(params)).flatten_up_to(unboxed(kernels))
  both = zip(leaves, entries, strict=True)
  return treedef.unflatten(leaf if k is None else k for leaf, k in both)


def align(params: PyTree, masks: PyTree, strict: bool = True) -> list:
  """Returns the entry of `masks`, an array or None, for every leaf of `params`.

  Args:
    params: any pytree of arrays.
    masks: a tree of the same structure with None at some leaves.
    strict: whether the containers must be the same too, except for boxes around single
      arrays. Otherwise, leaves in other containers are matched by their paths; nnx, for
      example, wraps and unwraps arrays.

  Returns:
    A list in the flattening order of `params`.

  Raises:
    TypeError: a leaf of either tree is not an array.
    ValueError: the structures or shapes differ.
  """
  # Matches by structure if that is possible, and else by path. A mask without a leaf in
  # `params` is an error either way.
  check_arrays("params", params)
  check_arrays("masks", masks)
  named, treedef = named_leaves(params), jax.tree.structure(unboxed(params))
  paths = [path for path, _ in named]
  try:
    entries = [_only_leaf(e) for e in _flatten_up_to(treedef, unboxed(masks))]
  except (ValueError, TypeError, KeyError) as e:
    by_path = dict(named_leaves(masks))
    lost = [path for path in by_path if path not in paths]
    if strict or lost:
      lost = f"; {_few(lost)} missing" if lost else ""
      raise ValueError(
        "params must have the structure they had at init, which is that of the masks; "
        f"got leaves {_few(paths)}{lost}. {e}"
      ) from None
    entries = [by_path.get(path) for path in paths]
  for (path, leaf), mask in zip(named, entries, strict=True):
    if mask is not None and mask.shape != leaf.shape:
      raise ValueError(
        f"params must have the shapes they had at init: {path!r} has shape "
        f"{leaf.shape}, its mask {mask.shape}."
      )
  return entries


def _flatten_up_to(treedef, masks: PyTree) -> list:
  """Flattens masks like params; None may stand for a whole subtree without masks."""
  try:
    return treedef.flatten_up_to(masks)
  except (ValueError, TypeError, KeyError):
    if treedef.num_leaves < 2 or len(jax.tree.leaves(masks)) == 0:
      raise
    like = treedef.unflatten(range(treedef.num_leaves))
    none = lambda x: x is None
    whole = jax.tree.broadcast(masks, like, is_leaf=none)
    return treedef.flatten_up_to(whole)


def _only_leaf(entry: PyTree):
  leaves = jax.tree.leaves(entry)
  if len(leaves) > 1:
    raise ValueError(f"expected one mask per leaf, got {len(leaves)}.")
  return leaves[0] if leaves else None


def _few(paths: list[str], most: int = 6) -> str:
  more = f" and {len(paths) - most} more" if len(paths) > most else ""
  return ", ".join(repr(p) for p in paths[:most]) + more
