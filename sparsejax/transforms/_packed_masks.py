"""Masks of one bit a weight in the optimizer's state."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from sparsejax.core import (
  PyTree,
  SparseState,
  check_optimizer,
  is_placeholder,
  pack_tree,
  unpack_tree,
)
from sparsejax.core import masks as find_masks


def packed_masks(
  tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Holds the masks in bits between steps; updates are those of `tx`, bit for bit.

  state.masks: (..., n) bool -> (..., ceil(n / 8)) uint8, the last axis eight to a byte

  A bool takes a byte: of the 17 that a weight takes under Adam (weight, gradient and
  two moments in float32, mask) one is the mask's, and seven eighths of it are saved.
  It costs each step what unpacking costs. All functions that take a state take this
  one: `sj.masks` gives bools. A last axis that is cut over devices must hold a
  multiple of eight weights on each, or the bits lie whole on all of them; they stand
  without the boxes of `nn.with_partitioning`, which would cut bytes as weights.

  Args:
    tx: any optimizer with a sparse one of this package in it; the last wrapper goes
      outside: `sj.packed_masks(sj.initialize_grown(sj.rigl(...)))`.

  Returns:
    An optax transformation with the state of `tx`, its masks packed.

  Raises:
    TypeError: `tx` is no optimizer.
    ValueError: in `init`, there is no sparsified optimizer in the state, or explicit
      axes of a mesh cut a last axis otherwise than in whole bytes.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.packed_masks(sj.rigl(optax.sgd(0.1), density=0.25))
    >>> state = tx.init({"kernel": jnp.ones((8, 20))})
    >>> state.masks["kernel"].bits.shape, int(sj.masks(state)["kernel"].sum())
    ((8, 3), 40)
  """
  check_optimizer("tx", tx, "an optimizer with a sparse one in it")
  tx = optax.with_extra_args_support(tx)

  def init_fn(params):
    state = tx.init(params)
    find_masks(state)  # raises where there is nothing to pack
    if is_placeholder(params):
      # Bits are not shaped like the params.
      return _map_masks(lambda _: jnp.zeros((), jnp.uint8), state)
    return _map_masks(pack_tree, state)

  def update_fn(updates, state, params=None, **extra_args):
    state = _map_masks(unpack_tree, state)
    updates, state = tx.update(updates, state, params, **extra_args)
    return updates, _map_masks(pack_tree, state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _map_masks(f: Callable[[PyTree], PyTree], opt_state: PyTree) -> PyTree:
  def is_sparse(node):
    return isinstance(node, SparseState)

  return jax.tree.map(
    lambda node: node._replace(masks=f(node.masks)) if is_sparse(node) else node,
    opt_state,
    is_leaf=is_sparse,
  )
