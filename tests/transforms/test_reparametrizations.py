"""Soft thresholds and supermasks: pure functions, against tables worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj


def test_soft_threshold_and_its_gradients():
  params = {"kernel": jnp.array([[2.0, -0.75, 0.25]]), "bias": jnp.ones(3)}
  thresholds = sj.init_thresholds(params, 0.0)  # sigmoid(0) = 1/2, its slope 1/4
  assert thresholds["bias"] is None
  c = jnp.array([[1.0, 10.0, 100.0]])

  def loss(params, thresholds):
    e = sj.soft_threshold(params, thresholds)
    return jnp.sum(c * e["kernel"]) + jnp.sum(e["bias"])

  value, (d_params, d_thresholds) = jax.value_and_grad(loss, (0, 1))(params, thresholds)
  assert value == 1.5 - 2.5 + 3
  np.testing.assert_array_equal(d_params["kernel"], [[1, 10, 0]])
  # -c sign(w) / 4 of the two live weights.
  np.testing.assert_allclose(d_thresholds["kernel"], -0.25 + 2.5)
  masks = sj.soft_threshold_masks(params, thresholds)
  assert masks["kernel"].tolist() == [[True, True, False]]
  assert masks["bias"] is None


def test_weight_decay_learns_the_density():
  """One optimizer trains weights and thresholds, and decay raises the thresholds."""
  params = {"kernel": jnp.array([[2.0, -0.75, 0.1]])}
  both = (params, sj.init_thresholds(params, -5.0))
  tx = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(1.0))
  state = tx.init(both)
  for _ in range(4):
    grads = jax.grad(
      lambda b: jnp.float32(0) * jnp.sum(sj.soft_threshold(*b)["kernel"])
    )(both)
    updates, state = tx.update(grads, state, both)
    both = optax.apply_updates(both, updates)
  # s = -5 / 16, the threshold 0.42; weights a sixteenth.
  np.testing.assert_allclose(both[1]["kernel"], -0.3125)
  assert not sj.soft_threshold_masks(*both)["kernel"].any()


W = jnp.array([[5.0, 6.0, 7.0, 8.0]])
S = jnp.array([[0.1, -0.4, 0.3, 0.2]])


@pytest.mark.parametrize(
  ("absolute", "masks", "d_scores"),
  [(True, [[0, 1, 1, 0]], [[5, -6, 7, 8]]), (False, [[0, 0, 1, 1]], [[5, 6, 7, 8]])],
)
def test_supermask_and_its_gradients(absolute, masks, d_scores):
  params, scores = {"kernel": W, "bias": jnp.ones(2)}, {"kernel": S, "bias": None}
  options = {"density": 0.5, "absolute": absolute}

  def loss(params, scores):
    return jnp.sum(sj.supermask(params, scores, **options)["kernel"])

  value, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, scores)
  assert value == jnp.sum(W * jnp.array(masks, jnp.float32))
  np.testing.assert_array_equal(grads[0]["kernel"], masks)
  np.testing.assert_array_equal(grads[1]["kernel"], d_scores)
  found = sj.supermask_masks(scores, **options)
  assert found["kernel"].astype(int).tolist() == masks
  assert found["bias"] is None
  # Two layers in one leaf, the second with scores a tenth of the first one's.
  stack = {"kernel": jnp.stack([S, S / 10]), "bias": None}
  found = sj.supermask_masks(stack, **options, stacked="kernel")["kernel"]
  assert found.astype(int).tolist() == [masks, masks]
  params = {"kernel": jnp.stack([W, W]), "bias": jnp.ones(2)}
  effective = sj.supermask(params, stack, **options, stacked="kernel")["kernel"]
  np.testing.assert_array_equal(effective, jnp.where(found, params["kernel"], 0))


def test_edge_popup_trains_a_mask_of_exact_counts_and_no_weight():
  keys = jax.random.split(jax.random.key(0), 4)
  params = {
    "a": jnp.sign(jax.random.normal(keys[0], (6, 8))),
    "b": jnp.sign(jax.random.normal(keys[1], (8, 1))),
  }
  scores = sj.init_scores(params, keys[2])
  assert all(jnp.abs(scores[k]).max() <= n**-0.5 for k, n in (("a", 6), ("b", 8)))
  x = jax.random.normal(keys[3], (64, 6))
  y = x[:, :1]
  tx = optax.sgd(0.1, momentum=0.9)

  def loss(scores, density):
    e = sj.supermask(params, scores, density)
    return jnp.mean((jax.nn.relu(x @ e["a"]) @ e["b"] - y) ** 2)

  @jax.jit
  def step(scores, state, density):
    value, grads = jax.value_and_grad(loss)(scores, density)
    updates, state = tx.update(grads, state)
    return optax.apply_updates(scores, updates), state, value

  state, values = tx.init(scores), []
  for _ in range(60):
    scores, state, value = step(scores, state, jnp.float32(0.25))
    values.append(float(value))
  masks = sj.supermask_masks(scores, 0.25)
  assert [int(m.sum()) for m in jax.tree.leaves(masks)] == [12, 2]
  assert min(values[-10:]) < 0.5 * values[0]
