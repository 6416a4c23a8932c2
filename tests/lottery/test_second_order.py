import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.second_order import _prune_retrain as second_order
from sparsejax.second_order import levenberg_marquardt
from sparsejax.theory import _toy_problems as toy_problems


def test_prune_retrain_by_hand():
  """Magnitude, two rounds; retraining adds one to every weight, dead ones stay at 0."""
  rule = second_order.score_rule(lambda p, masks: jax.tree.map(jnp.abs, p))
  params = {"a": jnp.array([4.0, -1.0]), "b": jnp.array([[2.0], [3.0]])}
  masks = jax.tree.map(lambda p: p != 0, params)
  loss = lambda p: jnp.sum(p["a"]) + jnp.sum(p["b"])
  retrain = lambda p, masks: jax.tree.map(lambda x: x + 1, p)
  t = jax.jit(
    lambda p, m: second_order.prune_retrain(
      rule, retrain, loss, p, m, jnp.array([3, 1])
    )
  )(params, masks)
  assert t.retrained["a"].tolist() == [[5.0, 0.0], [6.0, 0.0]]
  assert t.retrained["b"].tolist() == [[[3.0], [4.0]], [[0.0], [0.0]]]
  assert t.live.tolist() == [3, 1]
  assert t.actual.tolist() == [1.0, -7.0]
  assert t.loss.tolist() == [12.0, 6.0]


def test_obd_rule_predicts_what_it_drops():
  diagonal = lambda w: jnp.array([2.0, 8.0, 4.0])
  rule = second_order.obd_rule(diagonal)
  pruned = rule(jnp.array([1.0, 1.0, 1.0]), jnp.array([True, True, True]), 1)
  assert pruned.params.tolist() == [0.0, 1.0, 0.0]
  assert float(pruned.predicted) == 3.0


def xor_net():
  problem = toy_problems.xor()
  x, targets = jnp.asarray(problem.inputs), jnp.where(problem.labels, 0.9, 0.1)

  def outputs(w):
    hidden = jax.nn.sigmoid(x @ w[:4].reshape(2, 2) + w[4:6][None])
    return jax.nn.sigmoid(hidden @ w[6:8] + w[8])

  residuals = lambda w: outputs(w) - targets
  loss = lambda w: (jnp.mean(residuals(w) ** 2) + 1e-4 * jnp.sum(w**2)) / 2
  right = lambda w: jnp.all((outputs(w) > 0.5) == jnp.asarray(problem.labels))
  return residuals, loss, right


def test_only_obs_prunes_xor_correctly():
  """Hassibi and Stork's example, on those nets of 40 that converged and solve it."""
  with jax.enable_x64(True):
    residuals, loss, right = xor_net()
    everything = jnp.ones(9, bool)
    start = jax.random.normal(jax.random.key(0), (40, 9), jnp.float64)
    train = lambda w: levenberg_marquardt(
      residuals, w, everything, decay=1e-4, steps=400
    )
    weights = jax.jit(jax.vmap(train))(start)
    slope = jnp.max(jnp.abs(jax.vmap(jax.grad(loss))(weights)), 1)
    good = np.flatnonzero(np.asarray(jax.vmap(right)(weights) & (slope < 1e-6)))
    assert len(good) >= 20
    weights = weights[good]
    rules = {
      "obs": second_order.surgeon_rule(loss),
      "magnitude": second_order.score_rule(lambda w, masks: jnp.abs(w)),
    }
    share = {}
    for name, rule in rules.items():
      pruned = jax.jit(jax.vmap(lambda w, r=rule: r(w, everything, 8)))(weights)
      assert (np.asarray(pruned.params == 0).sum(1) == 1).all()
      share[name] = float(jnp.mean(jax.vmap(right)(pruned.params).astype(jnp.float32)))
    assert share["obs"] == 1.0
    assert share["magnitude"] < 0.5


def test_levenberg_marquardt_reaches_ridge_regression():
  with jax.enable_x64(True):
    x = np.random.default_rng(0).normal(size=(20, 4))
    y = np.random.default_rng(1).normal(size=20)
    mask = np.array([True, True, False, True])
    w = levenberg_marquardt(
      lambda w: jnp.asarray(x) @ w - jnp.asarray(y),
      jnp.ones(4),
      jnp.asarray(mask),
      decay=0.1,
      steps=60,
    )
    live = x[:, mask]
    expected = np.linalg.solve(live.T @ live / 20 + 0.1 * np.eye(3), live.T @ y / 20)
    np.testing.assert_allclose(np.asarray(w)[mask], expected, rtol=1e-6)
    assert w[2] == 0


def test_live_must_be_a_vector():
  rule = second_order.score_rule(lambda p, masks: p)
  with pytest.raises(ValueError, match="one-dimensional"):
    second_order.prune_retrain(
      rule, lambda p, m: p, jnp.sum, jnp.ones(2), jnp.ones(2, bool), 1
    )
