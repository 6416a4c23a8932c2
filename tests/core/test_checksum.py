"""Checksums tell masks apart, whatever their layout, and find replicas that drifted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sparsejax import core

SPECS = {"a": P("data", "model"), "b": P(None, ("data", "model"), None), "c": P()}
SHAPES = {"a": (16, 8), "b": (3, 8, 4), "c": (5, 2)}


def _masks(seed=0):
  rng = np.random.default_rng(seed)
  return {n: rng.random(s) < 0.3 for n, s in SHAPES.items()} | {"d": None}


def _sharded(masks, axis_type=AxisType.Auto):
  mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
  put = lambda name: jax.device_put(masks[name], NamedSharding(mesh, SPECS[name]))
  return {name: put(name) for name in SPECS}


def _reference(masks):
  """The same by Python's integers."""
  total = 0
  for layer, name in enumerate(SHAPES):
    for i in np.flatnonzero(masks[name]):
      word = (int(i) + (layer + 1) * 0x9E3779B9) % 2**32
      word = (word ^ word >> 16) * 0x85EBCA6B % 2**32
      word = (word ^ word >> 13) * 0xC2B2AE35 % 2**32
      total += word ^ word >> 16
  return total % 2**32


def test_it_is_the_sum_of_hashes():
  masks = _masks()
  assert int(core.mask_checksum(masks)) == _reference(masks)
  assert int(core.mask_checksum({"a": jnp.zeros((2, 2), bool)})) == 0


def test_every_bit_counts():
  masks = _masks()
  seen = {_reference(masks)}
  for name in SHAPES:
    for index in np.ndindex(SHAPES[name]):
      flipped = masks | {name: masks[name].copy()}
      flipped[name][index] ^= True
      seen.add(_reference(flipped))
  assert len(seen) == 1 + sum(int(np.prod(s)) for s in SHAPES.values())


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_no_layout_changes_it(axis_type):
  masks = _masks()
  sharded = _sharded(masks, axis_type)
  assert int(jax.jit(core.mask_checksum)(sharded)) == _reference(masks)
  assert core.check_replicas(sharded) == core.check_replicas(masks) == _reference(masks)


@pytest.mark.parametrize("name", ["a", "c"])
def test_a_replica_that_drifted_is_found(name):
  masks = _masks()
  sharded = _sharded(masks)
  # Only the copies of "c" are replicated; a shard of "a" has no second holder.
  mesh = sharded["a"].sharding.mesh
  sharded["a"] = jax.device_put(masks["a"], NamedSharding(mesh, P("data")))
  x = sharded[name]
  pieces = [np.array(s.data) for s in x.addressable_shards]
  pieces[5].flat[0] ^= True
  devices = [s.device for s in x.addressable_shards]
  placed = [jax.device_put(p, d) for p, d in zip(pieces, devices, strict=True)]
  drifted = jax.make_array_from_single_device_arrays(x.shape, x.sharding, placed)
  lowest, highest = core.replica_checksums(sharded | {name: drifted})
  assert lowest != highest
  assert _reference(masks) in (lowest, highest)
  with pytest.raises(RuntimeError, match=rf"{lowest:#010x} and {highest:#010x}"):
    core.check_replicas(sharded | {name: drifted})


def test_replicas_of_pmap():
  masks = {name: mask for name, mask in _masks().items() if mask is not None}
  stacked = jax.tree.map(lambda m: np.stack([m] * 8), masks)
  out = jax.pmap(lambda m: m)(stacked)
  assert core.check_replicas(out, stacked=True) == _reference(masks)
  out["b"] = out["b"].at[3, 0, 0, 0].set(~out["b"][3, 0, 0, 0])
  with pytest.raises(RuntimeError, match="same on all replicas"):
    core.check_replicas(out, stacked=True)


def test_the_next_check_compiles_nothing(compilations):
  for masks, stacked in ((_masks(), False), ({"a": np.ones((8, 4), bool)}, True)):
    core.check_replicas(masks, stacked)
    compilations.clear()
    core.check_replicas(masks, stacked)
    assert not compilations


def test_what_is_no_mask_is_refused():
  with pytest.raises(TypeError, match="masks must be bool, got float32"):
    core.mask_checksum({"a": jnp.ones(3)})
