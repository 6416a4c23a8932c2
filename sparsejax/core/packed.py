"""Masks of one bit a weight, as leaves of an optimizer's state."""

import dataclasses
import functools
import math
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
  """The tree with a `PackedMask` for each bool array; scalars stay as they are.

  Raises:
    ValueError: explicit axes of a mesh cut a mask's last axis within a byte.
  """

  def pack_one(mask):
    if not mask.ndim:
      return mask
    _check_cut(mask)
    return PackedMask(jnp.packbits(mask, axis=-1), mask.shape[-1])

  return jax.tree.map(pack_one, masks)


def unpack_tree(masks: PyTree) -> PyTree:
  """The tree with a bool array for each `PackedMask`; arrays stay as they are."""

  def unpack_one(node):
    if not is_packed(node):
      return node
    return jnp.unpackbits(node.bits, axis=-1, count=node.size).astype(bool)

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
