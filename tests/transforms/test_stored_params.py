"""Optimizers that keep a copy of the params keep that of a sparse network."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj
from sparsejax.transforms._inner import mask_stored_params, stores_params
from tests.transforms.test_moments import KINDS, make

contrib = optax.contrib
STORING = {
  "cocob": lambda: contrib.cocob(),
  "dog": lambda: contrib.dog(),
  "dowg": lambda: contrib.dowg(),
  "madgrad": lambda: contrib.madgrad(0.01),
  "prodigy": lambda: contrib.prodigy(),
  "mechanize": lambda: contrib.mechanize(optax.sgd(0.01)),
  "schedule_free_sgd": lambda: contrib.schedule_free_sgd(0.01),
  "schedule_free_adamw": lambda: contrib.schedule_free_adamw(0.01),
}


@pytest.fixture(autouse=True)
def standard_promotion():
  """Several of optax's optimizers mix integer counts with floats."""
  with jax.numpy_dtype_promotion("standard"):
    yield


def parameters():
  rng = np.random.default_rng(0)
  return {
    "kernel": jnp.asarray(rng.normal(size=(8, 8)), jnp.float32),
    "bias": jnp.asarray(rng.normal(size=8), jnp.float32),
  }


def gradients(params):
  return jax.grad(lambda p: sum(jnp.sum(jnp.sin(3 * x)) for x in p.values()))(params)


def steps(tx, params, state, n):
  for _ in range(n):
    updates, state = jax.jit(tx.update)(gradients(params), state, params)
    params = optax.apply_updates(params, updates)
  return params, state


@pytest.mark.parametrize("name", sorted(set(KINDS) | {"mechanize", "schedule_free"}))
def test_the_table_names_every_optimizer_that_keeps_the_params(name):
  params = parameters()
  if name == "schedule_free":
    tx = contrib.schedule_free(optax.sgd(0.1), 0.1)
  else:
    tx = STORING[name]() if name in STORING else make(name)
  state = tx.init(params)
  same = lambda x: jnp.shape(x) == (8, 8) and bool(jnp.all(x == params["kernel"]))
  # L-BFGS has zeros there until its first update.
  keeps = name == "lbfgs" or any(map(same, jax.tree.leaves(state)))
  assert stores_params(state) == keeps


@pytest.mark.parametrize("mask_gradients", [False, True])
@pytest.mark.parametrize("name", STORING)
def test_training_from_dense_params_is_training_from_masked_ones(name, mask_gradients):
  transform = sj.chain(sj.drop(sj.magnitude, 0.3), sj.grow(sj.random))
  tx = sj.sparsify(
    STORING[name](), transform, 0.25, update_every=3, mask_gradients=mask_gradients
  )
  dense = parameters()
  masked = sj.apply_masks(dense, sj.masks(tx.init(dense)))
  # Gradients of masked weights must not differ, for those of dense params are others.
  first = gradients(masked)

  def run(params):
    state = tx.init(params)
    updates, state = jax.jit(tx.update)(first, state, params)
    return steps(tx, optax.apply_updates(params, updates), state, 7)

  (from_dense, _), (from_masked, state) = run(dense), run(masked)
  # DoG's first step is relative to the norm of the params that `init` got.
  tolerance = {"atol": 1e-4} if name == "dog" else {"rtol": 1e-5, "atol": 1e-6}
  chex.assert_trees_all_close(from_dense, from_masked, **tolerance)
  sj.check_sparse(from_dense, state)


def test_grown_weights_do_not_return_to_their_dense_initial_values():
  params = jax.tree.map(lambda x: 5 + jnp.abs(x), parameters())
  tx = sj.rigl(contrib.schedule_free_sgd(0.01), 0.25, update_every=2)
  state = tx.init(params)
  initial = sj.masks(state)["kernel"]
  params, state = steps(tx, params, state, 12)
  grown = sj.masks(state)["kernel"] & ~initial
  assert int(grown.sum()) > 0
  assert float(jnp.abs(jnp.where(grown, params["kernel"], 0)).max()) < 1
  evaluated = contrib.schedule_free_eval_params(state.inner_state, params)
  sj.check_sparse(evaluated, state)


def test_values_of_grown_weights_are_those_of_the_copy():
  inner = contrib.schedule_free_sgd(1e-6)
  tx = sj.rigl(inner, 0.25, update_every=2, grow_init="initial", end_step=2)
  initial = parameters()
  params, state, grown = initial, tx.init(initial), 0
  before = sj.masks(state)["kernel"]
  params, state = steps(tx, params, state, 6)
  grown = sj.masks(state)["kernel"] & ~before
  assert int(grown.sum()) > 0
  # With a copy of zeros they would be drawn there.
  wanted = jnp.where(grown, initial["kernel"], 0)
  got = jnp.where(grown, params["kernel"], 0)
  np.testing.assert_allclose(got, wanted, rtol=1e-3)


def test_deep_r_starts_grown_weights_from_zero_in_the_copy_too():
  tx = sj.deep_r(contrib.schedule_free_sgd(0.1), 0.25, update_every=1, noise=3.0)
  params = parameters()
  state, grown = tx.init(params), 0
  for _ in range(8):
    before = sj.masks(state)["kernel"]
    params, state = steps(tx, params, state, 1)
    copy = optax.tree.get(state, "z")["kernel"]
    still = params["kernel"] == 0  # masked, or grown in this step
    assert bool(jnp.all(jnp.where(still, copy == 0, True)))
    grown += int(jnp.sum(sj.masks(state)["kernel"] & (still | ~before)))
  assert grown > 0


def test_masks_set_after_init_keep_the_initial_values_of_their_weights():
  params = parameters()
  tx = sj.static_sparse(contrib.schedule_free_sgd(0.0001), 0.25)
  masks = {"kernel": params["kernel"] > 0, "bias": None}
  state = sj.with_masks(tx.init(params), masks)
  after, state = steps(tx, params, state, 5)
  wanted = jnp.where(masks["kernel"], params["kernel"], 0)
  np.testing.assert_allclose(after["kernel"], wanted, atol=0.01)
  sj.check_sparse(after, state)


def test_an_optimizer_inside_another_that_stores_params():
  params = parameters()
  masks = {"kernel": params["kernel"] > 0, "bias": None}
  state = contrib.schedule_free(contrib.dog(), 0.1).init(params)
  state = mask_stored_params(state, params, masks)
  wanted = jnp.where(masks["kernel"], params["kernel"], 0)
  copies = [x for x in jax.tree.leaves(state) if jnp.shape(x) == (8, 8)]
  chex.assert_trees_all_equal(copies, [wanted, wanted])


def test_leaves_that_a_partition_leaves_out():
  params = {"a": parameters(), "b": parameters()}
  labels = {"a": "dog", "b": "sgd"}
  tx = optax.partition({"dog": contrib.dog(), "sgd": optax.sgd(0.1)}, labels)
  masks = jax.tree.map(lambda p: p > 0 if p.ndim == 2 else None, params)
  state = mask_stored_params(tx.init(params), params, masks)
  stored = [x for x in jax.tree.leaves(state) if x.shape == (8, 8)]
  wanted = jnp.where(masks["a"]["kernel"], params["a"]["kernel"], 0)
  chex.assert_trees_all_equal(stored, [wanted])
