"""Masks from elsewhere, put into an optimizer's state."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from sparsejax.core._budgets import live_in
from sparsejax.core._containers import boxed_like, unboxed
from sparsejax.core._masks import masks as find_masks
from sparsejax.core._packed import is_packed, pack_tree, unpack_tree
from sparsejax.core._sharding import shard_like
from sparsejax.core._tree import check_arrays, named_leaves
from sparsejax.core._types import SparseState

Array = jax.Array
PyTree = Any


def with_masks(opt_state: PyTree, masks: PyTree) -> PyTree:
  """Puts masks into any nested optax state; budgets become their live counts.

  budget_l = #{i in layer l : m_i}

  The one way to start from masks that were made elsewhere: by a method that prunes at
  initialization, in another run, in a file (`sj.load_masks`). The next update sets
  what they mask to exactly zero. They stay as they are for good in an optimizer with
  `update_every=None`, and for as long as `update_masks=False` is passed to its update;
  otherwise the method goes on from them, with their budgets.

  Args:
    opt_state: the state of an optimizer made by this package, alone or inside
      `optax.chain`, `optax.partition`, `optax.MultiSteps` and the like.
    masks: a bool array (True = live) for each sparsified leaf, at its place in the
      params' tree, and None at all others, as `sj.masks` gives it. Leaves are matched
      by their paths, so a tree that a checkpoint restored as nested dicts will do.

  Returns:
    The state with other masks and budgets, laid out over devices as before; all else
    in it unchanged. May be called under `jit`.

  Raises:
    ValueError: there is no sparsified optimizer in the state; a mask is missing, is
      one too many, or has another shape than its weights.
    TypeError: a mask is not bool.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> params = {"kernel": jnp.array([[3.0, 1.0], [2.0, 4.0]])}
    >>> tx = sj.static_sparse(optax.sgd(0.1), density=0.5)
    >>> masks = {"kernel": params["kernel"] > 1}
    >>> state = sj.with_masks(tx.init(params), masks)
    >>> int(state.budgets["kernel"]), bool(state.masks["kernel"][0, 1])
    (3, False)
  """
  find_masks(opt_state)  # raises where there is nothing to replace
  check_arrays("masks", masks)
  given = dict(named_leaves(masks))
  used: set[str] = set()

  def replace(node):
    if not isinstance(node, SparseState):
      return node

    def new_mask(name, old):
      used.add(name)
      if name not in given:
        raise ValueError(
          f"masks must hold a mask for every sparsified leaf, got none for {name!r} "
          f"among {sorted(given)}."
        )
      return _checked(name, given[name], old)

    before = unpack_tree(node.masks)
    new = jax.tree.structure(before).unflatten(
      new_mask(name, old) for name, old in named_leaves(before)
    )
    budgets = jax.tree.map(
      lambda m, b: live_in(m, b).astype(b.dtype),
      new,
      boxed_like(node.budgets, new),
    )
    held = jax.tree.leaves(node.masks, is_leaf=is_packed)
    if any(is_packed(mask) for mask in held):
      new = pack_tree(new)
    return node._replace(masks=new, budgets=unboxed(budgets))

  state = jax.tree.map(
    replace, opt_state, is_leaf=lambda node: isinstance(node, SparseState)
  )
  if surplus := sorted(set(given) - used):
    raise ValueError(
      f"masks must be None at leaves that are not sparsified, got masks for {surplus}; "
      f"sparsified are {sorted(used)}."
    )
  return state


def densify(opt_state: PyTree) -> PyTree:
  """Makes every weight live, on demand.

  masks = 1, budget_l = size_l

  Woken weights start from exactly zero. A method that goes on updating keeps the new
  budgets, so it trains dense until masks are put back with `sj.with_masks`; one that
  prunes to a density prunes again at its next mask update.

  Args:
    opt_state: as in `with_masks`.

  Returns:
    The state with all masks True.

  Raises:
    ValueError: there is no sparsified optimizer in the state.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.rigl(optax.sgd(0.1), density=0.25)
    >>> state = sj.densify(tx.init({"kernel": jnp.ones((8, 8))}))
    >>> int(sj.masks(state)["kernel"].sum())
    64
  """
  return with_masks(opt_state, jax.tree.map(jnp.ones_like, find_masks(opt_state)))


def _checked(name: str, mask, old: Array) -> Array:
  """The new mask as an array that lies where the old one does."""
  dtype, shape = mask.dtype, mask.shape
  if dtype != jnp.bool_:
    raise TypeError(f"masks must be bool, got {dtype} at {name!r}.")
  if shape != old.shape:
    raise ValueError(
      f"masks must have the shapes of their weights, got {shape} for {old.shape} at "
      f"{name!r}."
    )
  # A copy: a step that donates its state must not take the caller's masks with it.
  mask = jnp.array(mask)
  if isinstance(old, Tracer) or isinstance(mask, Tracer):
    return shard_like(mask, old)
  # A weight that nobody placed must stay free, or the next step compiles again.
  return jax.device_put(mask, old.sharding) if old.committed else mask
