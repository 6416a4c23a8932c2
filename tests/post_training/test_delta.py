"""Sparse fine-tuning, against tables worked by hand."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj
from sparsejax import post_training


def kernel(*values, dtype="float32"):
  return {"kernel": jnp.array([values], dtype)}


def test_the_base_stays_bit_for_bit_where_the_delta_is_zero():
  base = kernel(-0.0, 1.0, 0.1, 7.0)
  delta = kernel(0.0, 1e-9, 0.2, -7.0)
  seen = post_training.with_delta(base, delta)["kernel"]
  np.testing.assert_array_equal(seen, [[0, 1, np.float32(0.1) + np.float32(0.2), 0]])
  assert jnp.signbit(seen[0, 0])
  # A delta of float32 on weights of bfloat16 is rounded once; whole numbers stay.
  mixed = {**kernel(1.0, 3.0, dtype="bfloat16"), "steps": jnp.int32(3)}
  change = {**kernel(0.0, 0.005), "steps": jnp.int32(0)}
  seen = post_training.with_delta(mixed, change)
  assert seen["kernel"].dtype == jnp.bfloat16
  assert seen["steps"] == 3
  grads = jax.grad(lambda d: post_training.with_delta(base, d)["kernel"].sum())(delta)
  np.testing.assert_array_equal(grads["kernel"], np.ones((1, 4)))


def test_fish_masks_are_the_largest_mean_squared_gradients():
  """L_i = a x_i + b y_i: the squared gradients are the inputs'."""
  base = {"a": jnp.zeros((1, 3)), "b": jnp.zeros(2)}
  loss = lambda p, example: jnp.sum(p["a"] * example[0]) + jnp.sum(p["b"] * example[1])
  examples = (
    jnp.array([[[1.0, 3, 0]], [[-1.0, -3, 4]], [[1.0, 3, 0]]]),  # 1, 9, 16 / 3
    jnp.array([[2.0, 0], [2, 1], [2, 0]]),  # 4, 1 / 3
  )
  for batch_size in (1, 2, 32):
    masks = post_training.fish_masks(loss, base, examples, 0.6, batch_size=batch_size)
    np.testing.assert_array_equal(masks["a"], [[False, True, True]])
    np.testing.assert_array_equal(masks["b"], [True, False])
  masks = post_training.fish_masks(
    loss, base, examples, 1 / 3, where="a", distribution=sj.uniform
  )
  np.testing.assert_array_equal(masks["a"], [[False, True, False]])
  assert masks["b"] is None
  # Each row a layer: squared gradients 1 and 4, 9 and 16.
  rows = {"a": jnp.zeros((2, 2))}, jnp.array([[[1.0, 2], [3, 4]]])
  loss = lambda p, x: jnp.sum(p["a"] * x)
  for stacked, expected in ((False, [[0, 0], [1, 1]]), ("a", [[0, 1], [0, 1]])):
    kwargs = {"stacked": stacked, "distribution": sj.uniform}
    masks = post_training.fish_masks(loss, *rows, 0.5, **kwargs)["a"]
    assert masks.astype(int).tolist() == expected
  tx = post_training.spiel(optax.sgd(0.1), 0.5, stacked="a")
  assert tx.init(rows[0]).budgets["a"].tolist() == [1, 1]


def test_a_fixed_delta_moves_its_weights_alone():
  base = kernel(1.0, 2.0, 3.0, 4.0)
  delta = jax.tree.map(jnp.zeros_like, base)
  masks = kernel(False, True, False, True, dtype="bool")
  tx = sj.static_sparse(optax.sgd(0.5), 0.5, where=".*")
  state = sj.with_masks(tx.init(delta), masks)
  loss = lambda d: jnp.sum(post_training.with_delta(base, d)["kernel"] ** 2) / 2
  for _ in range(2):
    updates, state = tx.update(jax.grad(loss)(delta), state, delta)
    delta = optax.apply_updates(delta, updates)
  np.testing.assert_array_equal(delta["kernel"], [[0, -1.5, 0, -3]])
  tuned = post_training.with_delta(base, delta)
  np.testing.assert_array_equal(tuned["kernel"], [[1, 0.5, 3, 1]])
  sj.check_sparse(delta, state)


def test_spiel_drops_small_deltas_and_grows_by_summed_gradients():
  """Two of five weights; every second step one is replaced."""
  base = kernel(1.0, 1, 1, 1, 1)
  tx = post_training.spiel(
    optax.sgd(1.0), 0.4, update_every=2, end_step=4, drop_fraction=0.5
  )
  delta = jax.tree.map(jnp.zeros_like, base)
  start = kernel(True, True, False, False, False, dtype="bool")
  state = sj.with_masks(tx.init(delta), start)
  table = [
    ([3, -1, 2, 1, 0], [-3, 1, 0, 0, 0], [1, 1, 0, 0, 0]),
    # Sums 3, -1, -1, 3, 0: the second weight is dropped and the fourth grown, which
    # gets its first step.
    ([0, 0, -3, 2, 0], [-3, 0, 0, -2, 0], [1, 0, 0, 1, 0]),
    # Sums start anew: 0, 0, 1, 0, 0 in the end. The fourth returns to the base.
    ([0, 9, 1, -1, 0], [-3, 0, 0, -1, 0], [1, 0, 0, 1, 0]),
    ([0, -9, 0, 1, 0], [-3, 0, 0, 0, 0], [1, 0, 1, 0, 0]),
  ]
  update = jax.jit(tx.update)
  for grads, expected, mask in table:
    updates, state = update(kernel(*map(float, grads)), state, delta)
    delta = optax.apply_updates(delta, updates)
    np.testing.assert_array_equal(sj.masks(state)["kernel"].astype(int), [mask])
    np.testing.assert_array_equal(delta["kernel"], [expected])
    sj.check_sparse(delta, state)
    tuned = post_training.with_delta(base, delta)["kernel"]
    assert int((tuned != base["kernel"]).sum()) <= 2


@pytest.mark.parametrize(
  ("call", "error", "message"),
  [
    (
      lambda: post_training.with_delta(kernel(1.0), {"other": jnp.ones((1, 1))}),
      ValueError,
      "delta must have the structure of base",
    ),
    (
      lambda: post_training.with_delta(kernel(1.0), kernel(1.0, 2.0)),
      ValueError,
      r"delta must have the shapes of base, \(1, 1\), got \(1, 2\)",
    ),
    (
      lambda: post_training.fish_masks(len, kernel(1.0), jnp.ones((2, 1)), 0.5),
      TypeError,
      "example_loss must be",
    ),
  ],
)
def test_bad_input_is_named(call, error, message):
  with pytest.raises(error, match=message):
    call()


@pytest.mark.slow
def test_the_example_changes_one_weight_in_fifty():
  found = importlib.import_module("examples.sparse_fine_tuning")
  assert all(found.changed[name] <= 150 for name in ("random", "FISH", "SpIEL"))
  found = found.accuracies
  assert found["no delta"] < 0.3 < found["FISH"] < found["SpIEL"] < found["all weights"]
