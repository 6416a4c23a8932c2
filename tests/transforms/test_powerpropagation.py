"""Powerpropagation against its definition in theta, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj

MOMENTUM = optax.sgd(0.1, momentum=0.9)


def power(theta, alpha):
  return theta * np.abs(theta) ** (alpha - 1)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.5])
def test_it_is_momentum_sgd_on_theta(alpha):
  rng = np.random.default_rng(0)
  theta = rng.normal(size=(5, 4))
  theta[0, 0] = 0
  params = {"kernel": jnp.asarray(power(theta, alpha), jnp.float32), "b": jnp.ones(4)}
  tx = sj.power_updates(MOMENTUM, alpha)
  plain = MOMENTUM
  state, bare = tx.init(params), plain.init(params["b"])
  trace, update = np.zeros_like(theta), jax.jit(tx.update)
  for _ in range(5):
    grads = {"kernel": rng.normal(size=(5, 4)), "b": rng.normal(size=4)}
    slope = alpha * np.abs(theta) ** (alpha - 1)
    trace = 0.9 * trace + slope * grads["kernel"]
    theta = theta - 0.1 * trace
    grads = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), grads)
    updates, state = update(grads, state, params)
    expected, bare = plain.update(grads["b"], bare, params["b"])
    np.testing.assert_allclose(updates["b"], expected, rtol=1e-6)
    params = optax.apply_updates(params, updates)
    expected = power(theta, alpha)
    np.testing.assert_allclose(params["kernel"], expected, rtol=1e-4, atol=1e-6)
  assert alpha == 1 or params["kernel"][0, 0] == 0


def test_weights_without_an_update_stay_to_the_last_bit():
  weights = jnp.linspace(-3, 3, 101).reshape(101, 1)
  tx = sj.power_updates(optax.sgd(0.1), 3.0)
  for dtype in (jnp.float32, jnp.bfloat16):
    params = {"kernel": weights.astype(dtype)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    assert not updates["kernel"].any()


def test_it_prunes_the_smallest_weights_and_goes_with_other_methods():
  params = {"kernel": jnp.array([[0.5, -2, 3, 0.1]])}
  tx = sj.powerpropagation(optax.sgd(0.1), 0.5, end_step=2, update_every=1)
  state = tx.init(params)
  for _ in range(2):
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_array_equal(params["kernel"] != 0, [[False, True, True, False]])
  sj.check_sparse(params, state)
  # Top-KAST trains its backward set through theta as well.
  params = {"kernel": jnp.array([[4.0, 1, 0.25, 0.01]])}
  tx = sj.top_kast(sj.power_updates(optax.sgd(0.25)), 0.25, exploration=0.0)
  updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
  # theta = 2, 1 with gradients 4, 2: theta' = 1, 0.5.
  np.testing.assert_allclose(updates["kernel"], [[-3, -0.75, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.5, np.nan, "a"])
def test_alpha_must_be_at_least_one(alpha):
  with pytest.raises((TypeError, ValueError), match="alpha must be"):
    sj.powerpropagation(MOMENTUM, 0.5, end_step=1000, alpha=alpha)
