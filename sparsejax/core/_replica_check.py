"""A checksum of masks, and a check that all replicas have the same masks."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sparsejax.core._tree import check_masks

Array = jax.Array
PyTree = Any
_GOLDEN = 0x9E3779B9


def mask_checksum(masks: PyTree) -> Array:
  """Computes a checksum of masks that does not depend on their sharding.

  c = sum_l sum_{i in l live} h(i, l) mod 2^32

  with h the finalizer of MurmurHash3 on the weight's linear index and the index of its
  leaf. It is one pass over the masks; for a sharded mask one number is communicated.
  Different masks have the same checksum with probability 2^-32.

  Args:
    masks: tree of bool arrays, as `sj.masks` returns it; may be traced.

  Returns:
    uint32 scalar.

  Raises:
    TypeError: a leaf is not bool.

  References:
    Appleby 2011, MurmurHash3 (`fmix32`).

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsejax import core
    >>> here = core.mask_checksum({"w": jnp.array([True, False])})
    >>> there = core.mask_checksum({"w": jnp.array([False, True])})
    >>> bool(here == there)
    False
  """
  leaves = _checked(masks)
  parts = (_leaf(m, i, m.shape, (0,) * m.ndim) for i, m in enumerate(leaves))
  return functools.reduce(jnp.add, parts, jnp.uint32(0))


def replica_checksums(masks: PyTree, stacked: bool = False) -> tuple[int, int]:
  """Computes the smallest and the largest checksum among all copies of the masks.

  Each device computes the checksum of its own copy. For a sharded mask, the devices
  with the shards of one copy add their parts. Two numbers are communicated.

  Args:
    masks: as in `mask_checksum`, but not traced. In a run with several processes, each
      process must call the function.
    stacked: whether the first axis of each mask indexes the replicas, as in the results
      of `jax.pmap`. Otherwise the replicas are the copies of a replicated array.

  Returns:
    `(smallest, largest)`, which are equal if all copies are the same.

  Raises:
    TypeError: a leaf is not bool.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsejax import core
    >>> lowest, highest = core.replica_checksums({"w": jnp.array([True, False])})
    >>> lowest == highest
    True
  """
  # Copies on the devices of one mesh are compared; otherwise there is only one copy.
  leaves = _checked(masks)
  if stacked:
    found = _among(leaves)
  else:
    named = [x.sharding for x in leaves if isinstance(x.sharding, NamedSharding)]
    if len(named) == len(leaves) and len({s.mesh for s in named}) == 1:
      specs = tuple(s.spec for s in named)
      found = _across(leaves, mesh=named[0].mesh, specs=specs)
    else:
      found = (jax.jit(mask_checksum)(leaves),) * 2  # one copy, on one device
  lowest, highest = jax.device_get(found)
  return int(lowest), int(highest)


def check_replicas(masks: PyTree, stacked: bool = False) -> int:
  """Raises RuntimeError unless all replicas have the same masks.

  Replicas whose masks differ continue to train, with an error in every averaged
  gradient and no other sign of it.

  Args:
    masks: as in `replica_checksums`.
    stacked: as in `replica_checksums`.

  Returns:
    The checksum of all replicas.

  Raises:
    RuntimeError: the checksums differ.
    TypeError: a leaf is not bool.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from sparsejax import core
    >>> drifted = {"w": jnp.array([[True, False], [False, True]])}
    >>> core.check_replicas(drifted, stacked=True)
    Traceback (most recent call last):
      ...
    RuntimeError: masks must be the same on all replicas, got checksums ...
  """
  lowest, highest = replica_checksums(masks, stacked)
  if lowest != highest:
    raise RuntimeError(
      f"masks must be the same on all replicas, got checksums {lowest:#010x} and "
      f"{highest:#010x}."
    )
  return lowest


@jax.jit
def _among(leaves: list[Array]) -> tuple[Array, Array]:
  """Computes the smallest and largest checksum over the first axis of each mask."""
  checksums = jax.vmap(mask_checksum)(leaves)
  return jnp.min(checksums), jnp.max(checksums)


@functools.partial(jax.jit, static_argnames=("mesh", "specs"))
def _across(leaves: list[Array], *, mesh: Mesh, specs: tuple[PartitionSpec, ...]):
  """Computes the smallest and largest checksum over the devices of a mesh."""
  shapes = [leaf.shape for leaf in leaves]

  def local(leaves):
    # The checksum of this device's copy: its own shards, plus those on the devices
    # along the mesh axes over which a mask is sharded.
    total = jnp.uint32(0)
    for i, (mask, shape, spec) in enumerate(zip(leaves, shapes, specs, strict=True)):
      axes = [_names(entry) for entry in spec]
      starts = [
        lax.axis_index(names).astype(jnp.uint32) * jnp.uint32(n) if names else 0
        for names, n in zip(axes, mask.shape, strict=False)
      ]
      starts += [0] * (mask.ndim - len(starts))
      part = _leaf(mask, i, shape, starts)
      used = tuple(name for names in axes for name in names)
      total = total + (lax.psum(part, used) if used else part)
    return lax.pmin(total, mesh.axis_names), lax.pmax(total, mesh.axis_names)

  # Without `check_vma`, which would take replicated inputs to be equal; whether they
  # are is the question here.
  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(list(specs),),
    out_specs=PartitionSpec(),
    check_vma=False,
  )(leaves)


def _leaf(mask: Array, layer: int, shape: tuple[int, ...], starts) -> Array:
  """Computes the part of the checksum from one array or from its shard at `starts`."""
  # The linear index of each element in the whole array.
  sharding = getattr(jax.typeof(mask), "sharding", None)
  explicit = sharding is not None and any(s is not None for s in sharding.spec)
  index = jnp.zeros_like(mask, jnp.uint32)
  stride = 1
  for axis in reversed(range(mask.ndim)):
    iota = lax.broadcasted_iota(
      jnp.uint32, mask.shape, axis, out_sharding=sharding if explicit else None
    )
    at = iota + jnp.asarray(starts[axis], jnp.uint32)
    index = index + at * jnp.uint32(stride % 2**32)
    stride *= shape[axis]
  # Hashes index and leaf number by `fmix32`, and sums the hashes of live weights.
  word = index + jnp.uint32((layer + 1) * _GOLDEN % 2**32)
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    word = (word ^ (word >> jnp.uint32(shift))) * jnp.uint32(factor)
  word = word ^ (word >> jnp.uint32(16))
  return jnp.sum(jnp.where(mask, word, jnp.zeros_like(word)), dtype=jnp.uint32)


def _names(entry: Any) -> tuple[str, ...]:
  """Returns the mesh axes in one entry of a `PartitionSpec`."""
  if entry is None:
    return ()
  return entry if isinstance(entry, tuple) else (entry,)


def _checked(masks: PyTree) -> list[Array]:
  check_masks(masks)
  return [jnp.asarray(leaf) for leaf in jax.tree.leaves(masks)]
