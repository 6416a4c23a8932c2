"""Masks of one bit per weight in the state of an optimizer."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.core._containers import unboxed

Array = jax.Array
PyTree = Any


class PackedMask(NamedTuple):
  """A mask packed to bits.

  The size is static, part of the tree structure, so all shapes follow from the
  structure and the arrays. The type is a NamedTuple so that `flax.serialization` writes
  it like the other states.

  Attributes:
    bits: uint8 (..., ceil(size / 8)), the first weight in the highest bit.
    size: the length of the mask's last axis.
  """

  bits: Array
  size: int


jax.tree_util.register_pytree_with_keys(
  PackedMask,
  lambda mask: (((jax.tree_util.GetAttrKey("bits"), mask.bits),), mask.size),
  lambda size, children: PackedMask(next(iter(children)), size),
)


def is_packed(node: Any) -> bool:
  """Returns whether a node of a tree is a `PackedMask`."""
  return isinstance(node, PackedMask)


def pack_tree(masks: PyTree) -> PyTree:
  """Replaces each bool array by a `PackedMask`; scalars are unchanged.

  Boxes are removed, because their metadata describes an array of the kernel's shape,
  which the bits do not have.

  Raises:
    ValueError: the last axis of a mask is sharded over explicit mesh axes, and a shard
      does not have a multiple of eight weights.
  """

  def pack_one(mask):
    if not mask.ndim:
      return mask
    _check_cut(mask)
    return PackedMask(jnp.packbits(mask, axis=-1), mask.shape[-1])

  return jax.tree.map(pack_one, unboxed(masks))


def unpack_tree(masks: PyTree) -> PyTree:
  """Replaces each `PackedMask` by a bool array; other arrays are unchanged."""

  def unpack_one(node):
    if not is_packed(node):
      return node

    def unpack(bits):
      return jnp.unpackbits(bits, axis=-1, count=node.size).astype(bool)

    abstract = isinstance(node.bits, jax.ShapeDtypeStruct)
    return jax.eval_shape(unpack, node.bits) if abstract else unpack(node.bits)

  return jax.tree.map(unpack_one, masks, is_leaf=is_packed)


def _check_cut(mask: Array) -> None:
  """Raises ValueError if explicit sharding splits the mask's last axis within a byte.

  Sharding over automatic axes is not known here; the compiler handles it.
  """
  sharding = getattr(jax.typeof(mask), "sharding", None)
  if sharding is None or not sharding.spec:
    return
  axes = sharding.spec[-1]
  names = axes if isinstance(axes, tuple) else (axes,) if axes is not None else ()
  parts = math.prod(sharding.mesh.shape[name] for name in names)
  if mask.shape[-1] % (8 * parts) and parts > 1:
    raise ValueError(
      "packed_masks needs a multiple of eight weights on each device along a last axis"
      f" that explicit mesh axes cut, got {mask.shape[-1]} weights on {parts} devices."
    )
