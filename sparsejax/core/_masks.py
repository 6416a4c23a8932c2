"""Functions on trees of masks: find, apply, rescale, pack to bits, count."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from sparsejax.core._budgets import size_per_live
from sparsejax.core._containers import boxed_like
from sparsejax.core._kernel_axes import Stacked, check_stacked, layer_axes
from sparsejax.core._packed import unpack_tree
from sparsejax.core._tree import (
  align,
  check_arrays,
  check_masks,
  named_leaves,
  why_dense,
)
from sparsejax.core._types import SparseState

Array = jax.Array
PyTree = Any


def sparse_states(opt_state: PyTree) -> list[SparseState]:
  """Lists every `SparseState` inside a nested optimizer state.

  A state inside another `SparseState` is not listed.
  """

  def is_state(node):
    return isinstance(node, SparseState)

  leaves = jax.tree.leaves(opt_state, is_leaf=is_state)
  return [leaf for leaf in leaves if is_state(leaf)]


def _some_states(opt_state: PyTree) -> list[SparseState]:
  """Lists the sparse states, or raises ValueError if there is none."""
  states = sparse_states(opt_state)
  if not states:
    raise ValueError(
      "opt_state must come from an optimizer made by sparsejax, got "
      f"{type(opt_state).__name__} without any SparseState in it."
    )
  return states


def masks(opt_state: PyTree) -> PyTree:
  """Finds the masks in any nested optax state.

  The arrays are those of the state, so a step that donates the state deletes them; copy
  them first with `jax.tree.map(jnp.copy, sj.masks(state))` if they must outlive it.

  Args:
    opt_state: the state of an optimizer made by this package, alone or inside
      `optax.chain`, `optax.partition`, `optax.MultiSteps` and the like.

  Returns:
    A tree like the params, with one bool array (True = live) at each sparsified leaf
    and None elsewhere, so `jax.tree.leaves(sj.masks(s))` lists the masks.

  Raises:
    ValueError: `opt_state` has no state of a sparsified optimizer.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.static_sparse(optax.sgd(0.1), density=0.5)
    >>> state = tx.init({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)})
    >>> sj.masks(state)["bias"] is None, int(sj.masks(state)["kernel"].sum())
    (True, 2)
  """
  return merged_masks(_some_states(opt_state))


def soft_masks(opt_state: PyTree) -> PyTree:
  """Finds the factors by which `sj.effective` multiplies the weights.

  s_i >= 0 where live, else 0;  the mask m_i itself where a method has no soft masks

  Soft masks change at every step, and many become hard in the course of training. They
  act inside the boolean masks: `sj.masks(opt_state)` says which weights are live, with
  the exact counts of the budgets. Counts, `sj.summary` and `sj.check_sparse` read these
  alone.

  Args:
    opt_state: the state of an optimizer made by this package, possibly nested, as in
      `masks`.

  Returns:
    A tree like the params, with None at leaves that are not sparsified, a float array
    in the weight's dtype at leaves with a soft mask, and the bool mask at others.

  Raises:
    ValueError: `opt_state` has no state of a sparsified optimizer.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.straight_through(optax.sgd(0.1), density=0.5)
    >>> sj.soft_masks(tx.init({"kernel": jnp.array([[1.0, 2.0]])}))
    {'kernel': Array([[False,  True]], dtype=bool)}
  """

  def factors(state):
    masks = unpack_tree(state.masks)
    if state.soft_masks is None:
      return masks
    soft, treedef = jax.tree.flatten(state.soft_masks)
    both = zip(soft, jax.tree.leaves(masks), strict=True)
    return treedef.unflatten(jnp.where(m, s, jnp.zeros_like(s)) for s, m in both)

  return _merged([factors(state) for state in _some_states(opt_state)])


def merged_masks(
  states: list[SparseState],
  function: Callable[[SparseState, Array, Array], Array] | None = None,
) -> PyTree:
  """Merges the masks of several states of one params tree into one tree.

  Args:
    states: at least one state; each sparsifies other leaves of the tree.
    function: `(state, mask, budget) -> array`, called on each unpacked mask and its
      budget; its result takes the place of the mask. None for the masks themselves.

  Returns:
    One tree like the params, None where no state has a mask.
  """
  found = [unpack_tree(state.masks) for state in states]
  if function is not None:
    # Budgets are stored without the boxes that masks may have.
    found = [
      jax.tree.map(
        functools.partial(function, state), tree, boxed_like(state.budgets, tree)
      )
      for state, tree in zip(states, found, strict=True)
    ]
  return _merged(found)


def _merged(found: list[PyTree]) -> PyTree:
  if len(found) > 1:
    return _merge(found)
  # A single group of `optax.partition` has a node of its own in place of the others.
  other = lambda x: isinstance(x, optax.MaskedNode)
  return jax.tree.map(lambda x: None if other(x) else x, found[0], is_leaf=other)


def _merge(nodes: list[PyTree]) -> PyTree:
  """Merges masks of the groups of `optax.partition`, from the root down.

  A group has None at its own dense leaves, and an empty tuple (`optax.MaskedNode`) in
  place of every subtree that belongs to another group.
  """
  # Only groups that have something here take part.
  nodes = [n for n in nodes if n is not None and not (isinstance(n, tuple) and not n)]
  if not nodes:
    return None
  # Flattens one level of each group, and merges the children one by one.
  levels = [
    jax.tree.flatten(node, is_leaf=lambda x, node=node: x is not node) for node in nodes
  ]
  treedef = levels[0][1]
  if jax.tree_util.treedef_is_leaf(treedef):
    return nodes[0]
  if any(other != treedef for _, other in levels):
    raise ValueError("opt_state must sparsify one tree, got several structures.")
  groups = zip(*(c for c, _ in levels), strict=True)
  return treedef.unflatten(_merge(list(group)) for group in groups)


def skipped_updates(opt_state: PyTree) -> Array:
  """Counts the mask updates that were skipped because a score was not finite.

  Args:
    opt_state: the state of an optimizer made by this package, possibly nested.

  Returns:
    int32 scalar.

  Raises:
    ValueError: `opt_state` has no state of a sparsified optimizer.
  """
  counts = [state.skipped for state in _some_states(opt_state)]
  return jnp.sum(jnp.stack(counts), axis=0)


def apply_masks(params: PyTree, masks: PyTree) -> PyTree:
  """Sets every masked weight to exactly 0.

  p_i -> p_i if m_i else 0

  Args:
    params: any pytree of arrays.
    masks: the masks of these params, as `sj.masks` returns them.

  Returns:
    The same container with the same dtypes; leaves without a mask are unchanged.

  Raises:
    TypeError: a leaf is not an array, or a mask is not bool.
    ValueError: structures or shapes differ.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj
    >>> masks = {"w": jnp.array([[True, False]]), "b": None}
    >>> sj.apply_masks({"w": jnp.ones((1, 2)), "b": jnp.ones(2)}, masks)
    {'b': Array([1., 1.], dtype=float32), 'w': Array([[1., 0.]], dtype=float32)}
  """
  check_masks(masks)
  leaves, treedef = jax.tree.flatten(params)
  entries = align(params, masks, strict=False)
  return treedef.unflatten(
    p if m is None else jnp.where(m, p, jnp.zeros_like(p))
    for p, m in zip(leaves, entries, strict=True)
  )


def masked_copy(params: PyTree, masks: PyTree) -> PyTree:
  """Applies masks and copies every leaf, so that no array is shared with `params`.

  Use it for the initial params of a training run: a step that donates them then leaves
  the caller's arrays intact, for example to rewind to them.

  Args:
    params: as in `apply_masks`.
    masks: as in `apply_masks`.

  Returns:
    As `apply_masks`; leaves without a mask are copied, unless they are traced.

  Raises:
    TypeError: as in `apply_masks`.
    ValueError: as in `apply_masks`.
  """
  return copied(apply_masks(params, masks))


def copied(tree: PyTree) -> PyTree:
  """Copies every array of a tree; traced values are returned unchanged."""
  return jax.tree.map(lambda x: x if isinstance(x, Tracer) else x.copy(), tree)


def pack(masks: PyTree) -> PyTree:
  """Packs masks to one bit per weight, for storage and transport.

  Args:
    masks: tree of bool arrays.

  Returns:
    The same tree with the last axis of each array packed: eight weights per uint8, the
    first in the highest bit. The shape is (..., ceil(n / 8)).

  Raises:
    TypeError: a leaf is not bool.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj
    >>> sj.pack(jnp.array([True, False, True]))
    Array([160], dtype=uint8)
  """
  check_masks(masks)

  def pack_one(mask):
    mask = jnp.atleast_1d(mask)
    if not mask.size:  # packbits divides by the number of rows
      return jnp.zeros((*mask.shape[:-1], -(-mask.shape[-1] // 8)), jnp.uint8)
    return jnp.packbits(mask, axis=-1)

  return jax.tree.map(pack_one, masks)


def unpack(packed: PyTree, like: PyTree) -> PyTree:
  """Unpacks masks that `pack` made.

  Args:
    packed: the result of `pack`.
    like: tree of the same structure whose arrays (or abstract values) have the shapes
      of the masks, such as the sparsified leaves of the params.

  Returns:
    tree of bool arrays of these shapes.

  Raises:
    TypeError: a leaf of either tree is not an array, or a packed leaf is not uint8.
    ValueError: a packed leaf does not fit its shape, or the structures differ.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj
    >>> sj.unpack(jnp.array([160], jnp.uint8), jnp.ones(3))
    Array([ True, False,  True], dtype=bool)
  """
  for name, tree in (("packed", packed), ("like", like)):
    check_arrays(name, tree)
  if jax.tree.structure(packed) != jax.tree.structure(like):
    raise ValueError(
      f"packed must have the structure of like, {jax.tree.structure(like)}, got "
      f"{jax.tree.structure(packed)}."
    )

  def unpack_one(bits, leaf):
    if bits.dtype != jnp.uint8:
      raise TypeError(f"packed must be uint8, got {bits.dtype}.")
    shape = leaf.shape or (1,)
    expected = (*shape[:-1], -(-shape[-1] // 8))
    if bits.shape != expected:
      raise ValueError(
        f"packed must have shape {expected} for a mask of shape {leaf.shape}, got "
        f"{bits.shape}."
      )
    if not bits.size:
      return jnp.zeros(leaf.shape, bool)
    mask = jnp.unpackbits(bits, axis=-1, count=shape[-1]).astype(bool)
    return mask if leaf.shape else mask[0]

  return jax.tree.map(unpack_one, packed, like)


def summary(params: PyTree, masks: PyTree) -> str:
  """Formats a table of live weights, and of the reasons why other leaves are dense.

  Args:
    params: any pytree of arrays.
    masks: the masks of these params, as `sj.masks` returns them; leaves with None count
      as dense.

  Returns:
    The table as text, one line per leaf: path, shape, size, live weights, and density.
    For a leaf without a mask, the last column has the reason why it is dense: that of
    the default choice, such as "bias", or "excluded by where" for a kernel. The last
    two lines are the totals of the sparsified leaves and of all parameters.

  Raises:
    ValueError: structures or shapes differ.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj
    >>> masks = {"w": jnp.array([[True, False]]), "b": None}
    >>> print(sj.summary({"w": jnp.ones((1, 2)), "b": jnp.ones(2)}, masks))
    path        shape  size  live      density
    ------------------------------------------
    b           2         2     2  dense: bias
    w           1x2       2     1       0.5000
    ------------------------------------------
    sparsified            2     1       0.5000
    all                   4     3       0.7500
  """
  check_masks(masks)
  entries = align(params, masks, strict=False)
  # One transfer from the device for all counts.
  live = jax.device_get([None if m is None else jnp.sum(m) for m in entries])
  rows, kept, size, all_kept, all_size = [], 0, 0, 0, 0
  reasons = why_dense(params)
  for (path, leaf), live_here, why in zip(
    named_leaves(params), live, reasons, strict=True
  ):
    n = int(np.prod(leaf.shape))
    dense = f"dense: {why or 'excluded by where'}"
    density = dense if live_here is None else _ratio(int(live_here), n)
    alive = n if live_here is None else int(live_here)
    if live_here is not None:
      kept, size = kept + alive, size + n
    all_kept, all_size = all_kept + alive, all_size + n
    shape = "x".join(map(str, leaf.shape)) or "scalar"
    rows.append((path, shape, f"{n:,}", f"{alive:,}", density))
  totals = [("all", "", f"{all_size:,}", f"{all_kept:,}", _ratio(all_kept, all_size))]
  totals.insert(0, ("sparsified", "", f"{size:,}", f"{kept:,}", _ratio(kept, size)))
  return _table(("path", "shape", "size", "live", "density"), rows, totals)


def _ratio(part: int, whole: int) -> str:
  return f"{part / whole:.4f}" if whole else "-"


def _table(header, rows, totals) -> str:
  widths = [
    max(map(len, column)) for column in zip(header, *rows, *totals, strict=True)
  ]

  def line(row):
    left = [cell.ljust(w) for cell, w in zip(row[:2], widths[:2], strict=True)]
    right = [cell.rjust(w) for cell, w in zip(row[2:], widths[2:], strict=True)]
    return "  ".join(left + right)

  rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
  return "\n".join([line(header), rule, *map(line, rows), rule, *map(line, totals)])


def rescale(params: PyTree, masks: PyTree, *, stacked: Stacked = False) -> PyTree:
  """Scales each sparse layer so that its outputs have the dense layer's variance.

  w_l *= sqrt(size_l / live_l)

  Initializers choose the variance of a weight from its layer's fan-in. Masks remove a
  part of the fan-in, and at densities of a few percent the outputs of several layers in
  sequence become too small to train. Call it once at the start, after `apply_masks`.

  Args:
    params: the weights, masked or not.
    masks: the masks of these params, as `sj.masks` returns them.
    stacked: which leaves stack several layers, as in `sparsify`; each of these layers
      has a factor of its own.

  Returns:
    The params, with the same structure and dtypes. Leaves without a mask are unchanged.
    A layer without a live weight is scaled as if it had one.

  Raises:
    TypeError: a mask is not bool, or `stacked` has the wrong type.
    ValueError: the trees differ in structure, or `stacked` selects no leaf with a mask.

  References:
    Evci et al. 2022, "Gradient flow in sparse neural networks and how lottery tickets
    win", section 3, in the mean over a layer's neurons.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj
    >>> masks = {"w": jnp.array([[True, False], [False, False]])}
    >>> sj.rescale({"w": jnp.ones((2, 2))}, masks)["w"][0, 0]
    Array(2., dtype=float32)
  """
  check_masks(masks)
  check_stacked(stacked)
  leaves, treedef = jax.tree.flatten(params)
  entries = align(params, masks)
  axes = iter(layer_axes(params, [m is not None for m in entries], stacked))

  def scaled(p, mask):
    if mask is None:
      return p
    return p * jnp.sqrt(size_per_live(mask, next(axes).budget)).astype(p.dtype)

  return treedef.unflatten(scaled(p, m) for p, m in zip(leaves, entries, strict=True))
