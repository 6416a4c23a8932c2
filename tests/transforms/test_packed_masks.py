import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sparsejax as sj
from sparsejax.training._step import TrainState
from sparsejax.training.parallel import _mesh as mesh_lib

SHAPES = {"a": (6, 20), "b": (3, 16, 8), "c": (9, 1)}


def normal(seed, shape=None):
  rng = np.random.default_rng(seed)
  draw = lambda s: jnp.asarray(rng.normal(size=s), jnp.float32)
  return {k: draw(s) for k, s in (shape or SHAPES).items()} | {"bias": draw((4,))}


def optimizer():
  return sj.rigl(optax.sgd(0.1, momentum=0.9), density=0.4, update_every=2)


def run(tx, params, steps=5):
  step = jax.jit(tx.update)
  state = tx.init(params)
  for i in range(steps):
    updates, state = step(normal(i + 1), state, params)
    params = optax.apply_updates(params, updates)
  assert step._cache_size() == 1
  return params, state


def test_the_run_is_the_same_bit_for_bit_and_the_masks_an_eighth():
  params, state = run(optimizer(), normal(0))
  same, packed = run(sj.packed_masks(optimizer()), normal(0))
  chex.assert_trees_all_equal(same, params)
  chex.assert_trees_all_equal(sj.masks(packed), sj.masks(state))
  chex.assert_trees_all_equal(packed.budgets, state.budgets)
  bits = jax.tree.leaves(packed.masks)
  assert [b.dtype for b in bits] == [jnp.uint8] * 3
  # Rows of 20, 8 and 1 weights take 3, 1 and 1 bytes.
  assert [b.size for b in bits] == [6 * 3, 3 * 16, 9]


def test_state_functions_take_it():
  tx = sj.packed_masks(sj.track_exploration(optimizer()))
  _, state = run(tx, normal(0))
  assert sj.exploration_rate(state) > 0.4
  assert sj.skipped_updates(state) == 0
  dense = sj.densify(state)
  assert jax.tree.structure(dense) == jax.tree.structure(state)
  assert all(m.all() for m in jax.tree.leaves(sj.masks(dense)))
  back = sj.with_masks(dense, sj.masks(state))
  chex.assert_trees_all_equal(back, state)
  with pytest.raises(ValueError, match="must have the shapes of their weights"):
    sj.with_masks(state, sj.masks(state) | {"a": jnp.ones((6, 24), bool)})


def test_vmap():
  tx = sj.packed_masks(optimizer())
  stack = lambda *trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)
  params, grads = [normal(0), normal(10)], [normal(1), normal(11)]
  state = jax.vmap(tx.init)(stack(*params))
  _, state = jax.jit(jax.vmap(tx.update))(stack(*grads), state, stack(*params))
  alone = [tx.update(g, tx.init(p), p)[1] for g, p in zip(grads, params, strict=True)]
  jax.tree.map(
    np.testing.assert_array_equal,
    jax.vmap(sj.masks)(state),
    stack(*map(sj.masks, alone)),
  )


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_cut_over_devices(axis_type):
  mesh = jax.make_mesh((2,), ("x",), axis_types=(axis_type,))
  shape = {"a": (8, 32), "b": (4, 20)}
  # The last axis in whole bytes a device, and the one before it.
  spec = {"a": P(None, "x"), "b": P("x", None), "bias": P()}
  place = lambda tree: jax.tree.map(
    lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), tree, spec
  )
  tx, expected = sj.packed_masks(optimizer()), None
  for lay in (lambda tree: tree, place):
    params = lay(normal(0, shape))
    state = jax.jit(tx.init)(params)
    for i in range(3):
      _, state = jax.jit(tx.update)(lay(normal(i + 1, shape)), state, params)
    masks = jax.device_get(sj.masks(state))
    expected = masks if expected is None else expected
  chex.assert_trees_all_equal(masks, expected)
  got = {name: state.masks[name].bits.sharding for name in ("a", "b")}
  for name, sharding in got.items():
    assert sharding.is_equivalent_to(NamedSharding(mesh, spec[name]), 2), name


def test_a_layout_cuts_the_bits_as_it_cuts_the_weights():
  mesh = jax.make_mesh((1, 2), mesh_lib.AXES, axis_types=(AxisType.Auto,) * 2)
  layout = mesh_lib.Layout(mesh, False, ())
  params = {"a": {"kernel": jnp.ones((4, 32))}, "b": {"kernel": jnp.ones((4, 20))}}
  tx = sj.packed_masks(optimizer())

  state = jax.eval_shape(lambda: (params, tx.init(params)))
  fields = dict.fromkeys(TrainState._fields, ())
  whole = TrainState(**fields | {"params": state[0], "opt_state": state[1]})
  places = mesh_lib.of_state(layout, whole)
  specs = [p.spec for p in jax.tree.leaves(places.opt_state.masks)]
  # 20 weights are cut into 10 and 10, but not their three bytes.
  assert specs == [P(None, "model"), P(None, None)]
  assert [p.spec for p in jax.tree.leaves(places.params)] == [P(None, "model")] * 2


def test_what_cannot_be_packed_is_refused():
  with pytest.raises(ValueError, match="without any SparseState"):
    sj.packed_masks(optax.sgd(0.1)).init(normal(0))
  with pytest.raises(TypeError, match="tx must be"):
    sj.packed_masks("rigl")


def test_a_cut_within_a_byte():
  # Over automatic axes the bits lie whole everywhere; explicit ones cannot move them.
  kernel, tx = jnp.asarray(normal(0)["a"]), sj.packed_masks(optimizer())
  expected = sj.masks(tx.init({"a": kernel}))
  for axis_type in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(axis_type,))
    params = {"a": jax.device_put(kernel, NamedSharding(mesh, P(None, "x")))}
    if axis_type == AxisType.Auto:
      state = jax.jit(tx.init)(params)
      np.testing.assert_array_equal(sj.masks(state)["a"], expected["a"])
      assert state.masks["a"].bits.sharding.is_fully_replicated
    else:
      with pytest.raises(ValueError, match="got 20 weights on 2 devices"):
        jax.jit(tx.init)(params)
