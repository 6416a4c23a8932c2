"""Mask trees: finding, applying, packing, summing up."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsejax as sj
from sparsejax import lottery

PARAMS = {
  "body": {"kernel": jnp.arange(12.0).reshape(3, 4) + 1, "bias": jnp.ones(4)},
  "head": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)},
}


def test_found_in_nested_states():
  sparse = sj.static_sparse(optax.sgd(0.1, momentum=0.9), 0.5)
  for tx in (
    sparse,
    optax.chain(optax.clip(1.0), sparse),
    optax.MultiSteps(sparse, 2).gradient_transformation(),
    optax.apply_if_finite(sparse, 3),
  ):
    masks = sj.masks(tx.init(PARAMS))
    assert [m.shape for m in jax.tree.leaves(masks)] == [(3, 4), (4, 2)]
    assert masks["body"]["bias"] is None
    assert sum(int(m.sum()) for m in jax.tree.leaves(masks)) == 10


def test_groups_are_merged():
  labels = {"body": "a", "head": "b"}
  groups = {
    "a": sj.static_sparse(optax.sgd(0.1), 0.25),
    "b": sj.rigl(optax.adam(0.1), 0.5),
  }
  state = optax.partition(groups, labels).init(PARAMS)
  masks = sj.masks(state)
  assert int(masks["body"]["kernel"].sum()) == 3
  assert int(masks["head"]["kernel"].sum()) == 4
  assert masks["head"]["bias"] is None
  assert int(sj.skipped_updates(state)) == 0
  applied = sj.apply_masks(PARAMS, masks)
  assert int((applied["body"]["kernel"] != 0).sum()) == 3


def test_no_masks():
  with pytest.raises(ValueError, match="opt_state must come from an optimizer made by"):
    sj.masks(optax.adam(0.1).init(PARAMS))
  with pytest.raises(ValueError, match="without any SparseState"):
    sj.skipped_updates(optax.adam(0.1).init(PARAMS))


def test_apply_masks_is_exact_even_at_non_finite_weights():
  params = jnp.array([[jnp.nan, jnp.inf, -1.0, 2.0]])
  applied = sj.apply_masks(params, jnp.array([[False, False, False, True]]))
  assert applied.tolist() == [[0.0, 0.0, 0.0, 2.0]]
  assert not np.signbit(applied).any()


@settings(max_examples=40, deadline=None)
# Few shapes, for each is compiled: whole bytes and parts of them along the last axis.
@given(
  st.sampled_from([(), (1,), (7,), (8,), (5, 9), (3, 16), (2, 3, 17)]).flatmap(
    lambda shape: hnp.arrays(bool, shape)
  )
)
def test_pack_round_trip(mask):
  tree = {"m": jnp.asarray(mask), "none": None}
  packed = sj.pack(tree)
  assert packed["m"].size == mask[..., None].size // max(
    1, mask.shape[-1] if mask.ndim else 1
  ) * -(-(mask.shape[-1] if mask.ndim else 1) // 8)
  np.testing.assert_array_equal(sj.unpack(packed, tree)["m"], mask)


@pytest.mark.parametrize("shape", [(0,), (0, 9), (3, 0)])
def test_pack_round_trip_of_no_weights(shape):
  packed = sj.pack(jnp.ones(shape, bool))
  assert packed.shape == (*shape[:-1], -(-shape[-1] // 8))
  assert sj.unpack(packed, jnp.ones(shape)).shape == shape


def test_pack_refuses():
  with pytest.raises(TypeError, match="masks must be bool, got float32"):
    sj.pack({"m": jnp.ones(3)})
  with pytest.raises(ValueError, match=r"packed must have shape \(2,\)"):
    sj.unpack(jnp.zeros(1, jnp.uint8), jnp.zeros(9))


def test_summary():
  masks = {
    "body": {"kernel": jnp.arange(12).reshape(3, 4) < 3, "bias": None},
    "head": {"kernel": None, "bias": None},
  }
  table = sj.summary(PARAMS, masks).splitlines()
  assert table[3].split() == ["body/kernel", "3x4", "12", "3", "0.2500"]
  assert table[2].split() == ["body/bias", "4", "4", "4", "dense:", "bias"]
  excluded = "head/kernel 4x2 8 8 dense: excluded by where"
  assert table[5].split() == excluded.split()
  assert table[-2].split() == ["sparsified", "12", "3", "0.2500"]
  assert table[-1].split() == ["all", "26", "17", "0.6538"]
  assert len({len(line) for line in table}) == 1
  empty = {"w": jnp.zeros((0, 3), bool)}
  assert sj.summary(empty, empty).splitlines()[2].split()[-3:] == ["0", "0", "-"]


def test_rescale_keeps_the_variance_of_a_layer():
  masks = {
    "body": {"kernel": jnp.zeros((3, 4), bool).at[0].set(True), "bias": None},
    "head": {"kernel": jnp.zeros((4, 2), bool), "bias": None},
  }
  scaled = sj.rescale(sj.apply_masks(PARAMS, masks), masks)
  expected = np.sqrt(np.float32(3)) * np.array([1, 2, 3, 4], np.float32)
  np.testing.assert_allclose(scaled["body"]["kernel"][0], expected, rtol=1e-6)
  assert not scaled["body"]["kernel"][1:].any()
  assert not scaled["head"]["kernel"].any()
  np.testing.assert_array_equal(scaled["body"]["bias"], PARAMS["body"]["bias"])


@pytest.mark.parametrize("stacked", ["kernel", {"kernel": 1}])
def test_rescale_scales_each_stacked_layer_by_its_own_density(stacked):
  # The first layer keeps 1 of its 8 weights, the second 8 of 8: factors sqrt(8) and 1.
  mask = np.ones((2, 2, 4), bool)
  mask[0] = np.arange(8).reshape(2, 4) == 5
  expected = mask * np.array([8, 1]).reshape(2, 1, 1) ** 0.5
  if stacked != "kernel":
    mask, expected = (np.moveaxis(x, 0, 1) for x in (mask, expected))
  masks = {"kernel": jnp.asarray(mask), "bias": None}
  params = {"kernel": jnp.asarray(mask, jnp.float32), "bias": jnp.ones(4)}
  scaled = sj.rescale(params, masks, stacked=stacked)
  np.testing.assert_allclose(scaled["kernel"], expected, rtol=1e-6)
  np.testing.assert_array_equal(scaled["bias"], params["bias"])


def test_rescale_computes_in_the_precision_of_the_weights():
  with jax.enable_x64(True):
    w = jnp.ones((1, 3), jnp.float64)
    scaled = sj.rescale(w, jnp.array([[True, False, False]]))
    assert scaled.dtype == jnp.float64
    np.testing.assert_allclose(scaled[0, 0], 3**0.5, rtol=1e-15)


@pytest.mark.parametrize(
  ("labels", "other"),
  [({"a": "t", "b": "f"}, None), ({"a": {"k": "t"}, "b": {"k": "f"}}, {"k": None})],
)
def test_masks_of_a_single_group_are_none_elsewhere(labels, other):
  params = {name: {"k": jnp.ones((4, 4))} for name in "ab"}
  groups = {"t": sj.static_sparse(optax.sgd(0.1), 0.5), "f": optax.set_to_zero()}
  params, state = sj.init(optax.partition(groups, labels), params)
  masks = sj.masks(state)
  assert masks["b"] == other
  assert sj.rescale(params, masks)["b"]["k"].tolist() == [[1.0] * 4] * 4
  assert int(lottery.prune(params, masks, 0.25)["a"]["k"].sum()) == 6
