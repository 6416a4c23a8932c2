"""Masks of one bit a weight, as leaves of an optimizer's state."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=["bits"], meta_fields=["size"]
)
@dataclasses.dataclass(frozen=True)
class PackedMask:
  """A mask in bits.

  The size is no array, so that a state's structure knows all shapes.

  Attributes:
    bits: uint8 (..., ceil(size / 8)), the first weight in the highest bit.
    size: of the mask's last axis.
  """

  bits: Array
  size: int


def is_packed(node: Any) -> bool:
  """Whether a node of a tree is a `PackedMask`."""
  return isinstance(node, PackedMask)


def pack_tree(masks: PyTree) -> PyTree:
  """The tree with a `PackedMask` for each bool array; scalars stay as they are."""

  def pack_one(mask):
    if not mask.ndim:
      return mask
    return PackedMask(jnp.packbits(mask, axis=-1), mask.shape[-1])

  return jax.tree.map(pack_one, masks)


def unpack_tree(masks: PyTree) -> PyTree:
  """The tree with a bool array for each `PackedMask`; arrays stay as they are."""

  def unpack_one(node):
    if not is_packed(node):
      return node
    return jnp.unpackbits(node.bits, axis=-1, count=node.size).astype(bool)

  return jax.tree.map(unpack_one, masks, is_leaf=is_packed)
