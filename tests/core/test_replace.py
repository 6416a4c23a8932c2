"""Masks put into a state, and in files."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import sparsejax as sj

PARAMS = {
  "a": jnp.arange(1.0, 7.0).reshape(2, 3),
  "b": (jnp.ones((3, 2)), jnp.ones(2)),
}
MASKS = {
  "a": jnp.array([[True, False, True], [True, True, False]]),
  "b": (jnp.array([[True, False], [False, False], [False, False]]), None),
}


def same(got, expected):
  chex.assert_trees_all_equal(got, expected)
  assert jax.tree.structure(got) == jax.tree.structure(expected)


def nested(kernels):
  return optax.chain(
    optax.clip(1.0),
    optax.partition(
      {"a": kernels, "b": sj.dense(optax.sgd(0.1), 0.5, where=lambda p, x: x.ndim > 1)},
      {"a": "a", "b": "b"},
    ),
  )


def test_masks_and_budgets_of_a_nested_state():
  tx = nested(sj.dense(optax.sgd(0.1), 0.5))
  state = tx.init(PARAMS)
  new = sj.with_masks(state, MASKS)
  same(sj.masks(new), MASKS)
  is_state = lambda x: isinstance(x, sj.SparseState)
  states = [s for s in jax.tree.leaves(new, is_leaf=is_state) if is_state(s)]
  assert [int(b) for s in states for b in jax.tree.leaves(s.budgets)] == [4, 1]
  assert jax.tree.structure(new) == jax.tree.structure(state)
  types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert types(new) == types(state)
  updates, _ = jax.jit(tx.update)(PARAMS, new, PARAMS)
  after = optax.apply_updates(PARAMS, updates)
  same(after["a"] != 0, MASKS["a"])


def test_under_jit_and_by_path():
  tx = sj.dense(optax.sgd(0.1), 0.5)
  state = tx.init(PARAMS)
  restored = {"a": MASKS["a"], "b": {"0": np.asarray(MASKS["b"][0])}}
  same(sj.masks(jax.jit(sj.with_masks)(state, restored)), MASKS)


def test_stacked_layers_count_by_row():
  params = {"w": jnp.ones((2, 2, 3))}
  tx = sj.dense(optax.sgd(0.1), 0.5, stacked="w")
  masks = {"w": jnp.arange(12).reshape(2, 2, 3) < 8}
  assert sj.with_masks(tx.init(params), masks).budgets["w"].tolist() == [6, 2]


def test_a_method_goes_on_from_them_and_frozen_ones_stay():
  params = {"w": jnp.arange(1.0, 13.0).reshape(3, 4)}
  masks = {"w": params["w"] > 9}
  for every, moves in ((1, True), (None, False)):
    tx = sj.rigl(optax.sgd(0.1), 0.5, update_every=every, drop_fraction=0.5)
    state = sj.with_masks(tx.init(params), masks)
    _, after = jax.jit(tx.update)({"w": 1 / params["w"]}, state, params)
    assert int(sj.masks(after)["w"].sum()) == 3
    assert bool(jnp.any(sj.masks(after)["w"] != masks["w"])) is moves


def test_densify():
  tx = nested(sj.static_sparse(optax.sgd(0.1), 0.5))
  dense = sj.densify(tx.init(PARAMS))
  same(
    sj.masks(dense), {"a": jnp.ones((2, 3), bool), "b": (jnp.ones((3, 2), bool), None)}
  )


def test_masks_lie_where_they_lay():
  mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  place = NamedSharding(mesh, P("x", None))
  params = {"a": jax.device_put(PARAMS["a"], place)}
  state = sj.dense(optax.sgd(0.1), 0.5).init(params)
  masks = {"a": np.asarray(MASKS["a"])}
  assert sj.with_masks(state, masks).masks["a"].sharding == state.masks["a"].sharding
  new = jax.jit(sj.with_masks)(state, masks)
  assert new.masks["a"].sharding.is_equivalent_to(state.masks["a"].sharding, 2)


@pytest.mark.parametrize(
  ("masks", "error", "message"),
  [
    ({"a": MASKS["a"]}, ValueError, r"got none for 'b/0' among \['a'\]"),
    (
      MASKS | {"b": (MASKS["b"][0], jnp.ones(2, bool))},
      ValueError,
      r"got masks for \['b/1'\]; sparsified are \['a', 'b/0'\]",
    ),
    (MASKS | {"a": jnp.ones((2, 3))}, TypeError, "masks must be bool, got float32 at"),
    (
      MASKS | {"a": jnp.ones((3, 2), bool)},
      ValueError,
      r"got \(3, 2\) for \(2, 3\) at 'a'",
    ),
  ],
)
def test_refused(masks, error, message):
  state = sj.dense(optax.sgd(0.1), 0.5).init(PARAMS)
  with pytest.raises(error, match=message):
    sj.with_masks(state, masks)


def test_refused_without_a_sparse_state():
  with pytest.raises(ValueError, match="opt_state must come from an optimizer made by"):
    sj.with_masks(optax.sgd(0.1).init(PARAMS), MASKS)


def test_files(tmp_path):
  path = tmp_path / "masks"
  masks = MASKS | {"file": jnp.arange(20).reshape(2, 10) % 3 == 0}
  sj.save_masks(path, masks)
  assert path.exists()  # no suffix is added behind the caller's back
  like = PARAMS | {"file": jax.ShapeDtypeStruct((2, 10), jnp.float32)}
  same(sj.load_masks(path, like), masks)
  same(sj.load_masks(path, masks), masks)
  sj.save_masks(path, jnp.array(True))
  assert sj.load_masks(path, jnp.ones(())).item() is True


def test_files_refused(tmp_path):
  sj.save_masks(tmp_path / "m", MASKS)
  with pytest.raises(ValueError, match=r"a leaf of shape \(3, 2\) at 'b/0', got none"):
    sj.load_masks(tmp_path / "m", {"a": PARAMS["a"]})
  with pytest.raises(ValueError, match=r"shape \(2, 3\) at 'a', got \(2, 4\)"):
    sj.load_masks(tmp_path / "m", PARAMS | {"a": jnp.ones((2, 4))})
  np.savez(tmp_path / "other.npz", x=np.ones(2))
  with pytest.raises(ValueError, match="path must be a file of save_masks, got"):
    sj.load_masks(tmp_path / "other.npz", PARAMS)
  with pytest.raises(TypeError, match="masks must be bool"):
    sj.save_masks(tmp_path / "m", {"a": jnp.ones(3)})
