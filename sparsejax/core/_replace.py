"""Replacing the masks in an optimizer's state."""

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
from sparsejax.core._types import CondensedState, SparseState

Array = jax.Array
PyTree = Any


def with_masks(opt_state: PyTree, masks: PyTree) -> PyTree:
  """Replaces the masks in a nested optax state; budgets become their live counts.

  budget_l = #{i in layer l : m_i}

  Use it to start from masks that were made elsewhere: by a method that prunes at
  initialization, in another run, or in a file (`sj.load_masks`). The next update sets
  the masked weights to exactly zero. The masks never change in an optimizer with
  `update_every=None`, nor while `update_masks=False` is passed to its `update`.
  Otherwise the method continues from these masks, with their budgets. Soft masks become
  1; the next update computes them anew. Masks are not held against the method's
  structure, which the state does not contain.

  Args:
    opt_state: the state of an optimizer made by this package, alone or inside
      `optax.chain`, `optax.partition`, `optax.MultiSteps` and the like.
    masks: a tree like the params, as `sj.masks` returns it: a bool array (True = live)
      at each sparsified leaf and None elsewhere. Leaves are matched by their paths, so
      nested dicts that a checkpoint restored are accepted too.

  Returns:
    The state with the new masks and budgets, with the sharding that the old ones had;
    the rest is unchanged. May be called under `jit`.

  Raises:
    ValueError: `opt_state` has no state of a sparsified optimizer; a sparsified leaf
      has no mask, another leaf has one, or a shape differs from that of its weights;
      or the inner optimizer is `sj.condensed`, which has moments for the budgets of
      `init` alone.
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
  find_masks(opt_state)  # raises if there is no sparsified optimizer
  check_arrays("masks", masks)
  given = dict(named_leaves(masks))
  used: set[str] = set()

  def replace(node):
    if not isinstance(node, SparseState):
      return node
    if isinstance(node.inner_state, CondensedState):
      raise ValueError(
        "opt_state must have moments for all weights, got the state of sj.condensed, "
        "whose moments are those of the budgets at init; use the inner optimizer "
        "without sj.condensed to replace its masks."
      )

    def new_mask(name, old):
      used.add(name)
      if name not in given:
        raise ValueError(
          f"masks must contain a mask for every sparsified leaf, got none for {name!r} "
          f"among {sorted(given)}."
        )
      return _checked(name, given[name], old)

    # Takes the new mask of each sparsified leaf by its path.
    before = unpack_tree(node.masks)
    new = jax.tree.structure(before).unflatten(
      new_mask(name, old) for name, old in named_leaves(before)
    )
    # Budgets are stored without boxes; the new masks may have them.
    budgets = jax.tree.map(
      lambda m, b: live_in(m, b).astype(b.dtype),
      new,
      boxed_like(node.budgets, new),
    )
    # A state with packed masks gets packed masks again.
    old_masks = jax.tree.leaves(node.masks, is_leaf=is_packed)
    soft = node.soft_masks
    if soft is not None:
      soft = jax.tree.map(jnp.ones_like, soft)
    if any(is_packed(mask) for mask in old_masks):
      new = pack_tree(new)
    return node._replace(masks=new, budgets=unboxed(budgets), soft_masks=soft)

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
  """Makes every weight live.

  masks = 1, budget_l = size_l

  Grown weights start from exactly zero. A method that continues its mask updates keeps
  the new budgets, so it trains dense until `sj.with_masks` sets other masks. A method
  that prunes to a density prunes again at its next mask update.

  Args:
    opt_state: as in `with_masks`.

  Returns:
    The state with all masks True.

  Raises:
    ValueError: `opt_state` has no state of a sparsified optimizer.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.rigl(optax.sgd(0.1), density=0.25)
    >>> state = sj.densify(tx.init({"kernel": jnp.ones((8, 8))}))
    >>> int(sj.masks(state)["kernel"].sum())
    64
  """
  return with_masks(opt_state, jax.tree.map(jnp.ones_like, find_masks(opt_state)))


def _checked(name: str, mask, old: Array) -> Array:
  """Validates a new mask and gives a copy of it the sharding of the old one."""
  dtype, shape = mask.dtype, mask.shape
  if dtype != jnp.bool_:
    raise TypeError(f"masks must be bool, got {dtype} at {name!r}.")
  if shape != old.shape:
    raise ValueError(
      f"masks must have the shapes of their weights, got {shape} for {old.shape} at "
      f"{name!r}."
    )
  # A copy, because a step that donates its state would delete the caller's masks.
  mask = jnp.array(mask)
  if isinstance(old, Tracer) or isinstance(mask, Tracer):
    return shard_like(mask, old)
  # An uncommitted array must stay uncommitted, or the next step is compiled again.
  return jax.device_put(mask, old.sharding) if old.committed else mask
