"""Masks of one bit a weight, as leaves of an optimizer's state."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.core._containers import unboxed

Array = jax.Array
PyTree = Any


class PackedMask(NamedTuple):
  """A mask in bits.

  The size is no array, so that a state's structure knows all shapes. A NamedTuple, so
  that `flax.serialization` writes it like the states around it.

  Attributes:
    bits: uint8 (..., ceil(size / 8)), the first weight in the highest bit.
    size: of the mask's last axis.
  """

  bits: Array
  size: int


jax.tree_util.register_pytree_with_keys(
  PackedMask,
  lambda mask: (((jax.tree_util.GetAttrKey("bits"), mask.bits),), mask.size),
  lambda size, children: PackedMask(next(iter(children)), size),
)


def is_packed(node: Any) -> bool:
  """Whether a node of a tree is a `PackedMask`."""
  return isinstance(node, PackedMask)


def pack_tree(masks: PyTree) -> PyTree:
  """The tree with a `PackedMask` for each bool array; scalars stay as they are.

  Bits are not of the kernel's shape, so they leave the box around it.

  Raises:
    ValueError: explicit axes of a mesh cut a mask's last axis within a byte.
  """

  def pack_one(mask):
    if not mask.ndim:
      return mask
    _check_cut(mask)
    return PackedMask(jnp.packbits(mask, axis=-1), mask.shape[-1])

  return jax.tree.map(pack_one, unboxed(masks))


def unpack_tree(masks: PyTree) -> PyTree:
  """The tree with a bool array for each `PackedMask`; arrays stay as they are."""

  def unpack_one(node):
    if not is_packed(node):
      return node

    def unpack(bits):
      return jnp.unpackbits(bits, axis=-1, count=node.size).astype(bool)

    abstract = isinstance(node.bits, jax.ShapeDtypeStruct)
    return jax.eval_shape(unpack, node.bits) if abstract else unpack(node.bits)

  return jax.tree.map(unpack_one, masks, is_leaf=is_packed)


def _check_cut(mask: Array) -> None:
  """Only explicit axes are known here; over others the compiler moves what it must."""
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
