"""What users' functions give is checked: distributions, fractions, rules, scores."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj

PARAMS = {"a": jnp.ones((10, 10)), "b": jnp.ones((10, 20))}
SGD = optax.sgd(0.1)


def too_few(shapes, density):
  """.458 for .5: half of the first layer, .437 of the second."""
  del density
  return jnp.array([50, 87] if "a" in shapes else [87], jnp.int32)


def rounded(shapes, density):
  """Each layer rounded by itself, as one would write it at first."""
  sizes = jnp.array([np.prod(s) for s in shapes.values()], jnp.float32)
  return jnp.floor(density * sizes).astype(jnp.int32)


def test_a_distribution_must_keep_the_promised_total():
  message = (
    r"distribution must return budgets that sum to 150, 0.5 of 300 weights, got 137"
  )
  for method in (sj.static_sparse, sj.rigl, sj.sparse_momentum):
    with pytest.raises(ValueError, match=message):
      method(SGD, 0.5, distribution=too_few).init(PARAMS)
    with pytest.raises(ValueError, match=message):
      jax.jit(method(SGD, 0.5, distribution=too_few).init)(PARAMS)
  with pytest.raises(ValueError, match=message):
    sj.masks_from_scores(PARAMS, 0.5, distribution=too_few)
  with pytest.raises(ValueError, match=r"sum to 100, 0.5 of 200 weights, got 87"):
    sj.override(too_few, {"a": 0.5})({"a": (10, 10), "c": (10, 20)}, 0.5)


def test_a_traced_density_is_met_by_largest_remainder():
  # .333 of 300 is 99.9, so 100; floors of 33.3 and 66.6 are 33 and 66. To one more,
  # 33 and 66 of 100 / 99: 33.33 and 66.67.
  init = lambda density: sj.static_sparse(SGD, density, distribution=rounded).init
  state = jax.jit(lambda d: init(d)(PARAMS))(jnp.float32(0.333))
  assert [int(m.sum()) for m in sj.masks(state).values()] == [33, 67]
  # Zhu and Gupta's densities are traced at every mask update.
  tx = sj.gradual_magnitude(SGD, 0.1, update_every=1, end_step=3, distribution=rounded)
  state, update = tx.init(PARAMS), jax.jit(tx.update)
  for _ in range(3):
    _, state = update(PARAMS, state, PARAMS)
    total = sum(int(b) for b in state.budgets.values())
    assert total == sum(int(m.sum()) for m in sj.masks(state).values())
  assert total == 30


def skipped_after_one_update(tx):
  state = tx.init(PARAMS)
  before = sj.masks(state)
  _, state = jax.jit(tx.update)(PARAMS, state, PARAMS)
  chex.assert_trees_all_equal(before, sj.masks(state))
  return int(sj.skipped_updates(state))


def nan(*_):
  return jnp.float32(jnp.nan)


@pytest.mark.parametrize(
  "tx",
  [
    sj.rigl(SGD, 0.5, update_every=1, drop_fraction=nan),
    sj.sparse_evolution(SGD, 0.5, update_every=1, drop_fraction=nan),
    sj.sparse_momentum(SGD, 0.5, update_every=1, drop_fraction=nan),
    sj.dsr(SGD, 0.5, update_every=1, drop_fraction=nan),
    sj.sparse_momentum(
      SGD, 0.5, update_every=1, redistribute_by=lambda i, t: jnp.full(2, jnp.nan)
    ),
    sj.sparsify(SGD, sj.prune_to(sj.magnitude, nan, sj.uniform), update_every=1),
  ],
  ids=["rigl", "set", "momentum", "dsr", "redistribute", "prune_to"],
)
def test_nan_from_a_schedule_or_rule_skips_the_mask_update(tx):
  assert skipped_after_one_update(tx) == 1


@pytest.mark.parametrize(
  ("transform", "message"),
  [
    (sj.drop(sj.magnitude, lambda i, t: jnp.ones(3)), r"2 in all, got float32\[3\]"),
    (sj.drop(sj.magnitude, lambda step: step > 0), r"one number .* got bool\[\]"),
    (sj.redistribute(lambda i, t: jnp.ones(())), r"per layer, 2 in all, got float32"),
    (sj.prune_to(sj.magnitude, lambda step: jnp.ones(2) / 2), "density must return"),
    (sj.drop(lambda i: jax.tree.map(jnp.sum, i.params), 0.3), r"'a'; got float32\[\]"),
    (
      sj.drop(lambda i: i.masks, 0.3),
      r"score must return a float .* got bool\[10, 10\]",
    ),
    (sj.grow(lambda i: i.params["a"]), "score must return a tree like the sparsified"),
  ],
)
def test_shapes_and_dtypes_of_what_users_give_are_checked(transform, message):
  tx = sj.sparsify(SGD, transform, 0.5, update_every=1)
  state = tx.init(PARAMS)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(tx.update, PARAMS, state, PARAMS)
