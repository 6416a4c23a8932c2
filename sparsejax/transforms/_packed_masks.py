"""Masks of one bit per weight in the optimizer's state."""

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
  """Stores the masks as bits between steps; updates are those of `tx`, bit for bit.

  state.masks: (..., n) bool -> (..., ceil(n / 8)) uint8, the last axis eight to a byte

  A bool takes one byte. Under Adam a weight takes 17 bytes (weight, gradient and two
  moments in float32, and the mask), of which packing saves 7/8 of one byte. Every step
  pays for unpacking and packing. All functions that take an optimizer state accept the
  packed state: `sj.masks` returns bools.

  If the last axis is sharded, each device must have a multiple of eight weights along
  it; otherwise the bits are replicated on all devices. The bits are stored without the
  boxes of `nn.with_partitioning`, which would shard bytes as if they were weights.

  Args:
    tx: any optimizer that contains a sparse one of this package. Apply this wrapper
      last, outside of all others:
      `sj.packed_masks(sj.initialize_grown(sj.rigl(...)))`.

  Returns:
    An optax transformation with the state of `tx` and its masks packed.

  Raises:
    TypeError: `tx` is not an optimizer.
    ValueError: in `init`, there is no sparse optimizer in the state, or explicit mesh
      axes shard a last axis other than in whole bytes.

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
    find_masks(state)  # raises if there are no masks to pack
    if is_placeholder(params):
      # The packed bits do not have the shapes of the params.
      return _map_masks(lambda _: jnp.zeros((), jnp.uint8), state)
    return _map_masks(pack_tree, state)

  def update_fn(updates, state, params=None, **extra_args):
    state = _map_masks(unpack_tree, state)
    updates, state = tx.update(updates, state, params, **extra_args)
    return updates, _map_masks(pack_tree, state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _map_masks(f: Callable[[PyTree], PyTree], opt_state: PyTree) -> PyTree:
  """Applies a function to the masks of every sparse state inside a state."""

  def is_sparse(node):
    return isinstance(node, SparseState)

  return jax.tree.map(
    lambda node: node._replace(masks=f(node.masks)) if is_sparse(node) else node,
    opt_state,
    is_leaf=is_sparse,
  )
