import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.second_order import _compensation as compensation
from sparsejax.second_order import _layerwise_obs as layerwise_obs
from sparsejax.second_order import _mlp_obs as mlp_obs
from sparsejax.second_order import _obs as obs
from sparsejax.second_order import _woodfisher as woodfisher
from sparsejax.second_order import sparse_gpt


def quadratic(n, seed=0):
  rng = np.random.default_rng(seed)
  root = rng.normal(size=(n, n + 2))
  return root @ root.T / n, rng.normal(size=n)


def constrained_minimum(h, w, mask):
  """The minimizer of (v - w)^T H (v - w) with v = 0 outside the mask."""
  v = np.zeros_like(w)
  v[mask] = np.linalg.solve(h[np.ix_(mask, mask)], (h @ w)[mask])
  return v


def test_one_deletion_is_the_constrained_minimum_and_costs_what_is_predicted():
  with jax.enable_x64(True):
    h, w = quadratic(6)
    inverse = jnp.linalg.inv(jnp.asarray(h))
    saliency = obs.obs_saliency(jnp.asarray(w), inverse)
    for q in range(6):
      mask = np.arange(6) != q
      v = np.asarray(obs.obs_update(jnp.asarray(w), inverse, q))
      np.testing.assert_allclose(v, constrained_minimum(h, w, mask), rtol=1e-9)
      assert v[q] == 0
      actual = (v - w) @ h @ (v - w) / 2
      np.testing.assert_allclose(saliency[q], actual, rtol=1e-9)
      assert saliency[q] <= h[q, q] * w[q] ** 2 / 2 + 1e-12


def test_downdate_equals_the_reduced_inverse():
  with jax.enable_x64(True):
    h, _ = quadratic(5)
    lower = np.asarray(obs.downdate_inverse(jnp.linalg.inv(jnp.asarray(h)), 2))
    left = [0, 1, 3, 4]
    reduced = np.linalg.inv(h[np.ix_(left, left)])
    np.testing.assert_allclose(lower[np.ix_(left, left)], reduced, rtol=1e-9)
    assert not lower[2].any()
    assert not lower[:, 2].any()


def test_surgery_stays_on_the_constrained_minimum():
  with jax.enable_x64(True):
    h, w = quadratic(8, seed=1)
    run = jax.jit(obs.optimal_brain_surgeon)
    for live in (7, 4, 1):
      everything = jnp.ones(8, bool)
      result = run(jnp.asarray(w), jnp.asarray(h), everything, live)
      mask = np.asarray(result.mask)
      assert mask.sum() == live
      v = constrained_minimum(h, w, mask)
      np.testing.assert_allclose(result.weights, v, rtol=1e-7, atol=1e-12)
      actual = (v - w) @ h @ (v - w) / 2
      np.testing.assert_allclose(result.predicted, actual, rtol=1e-8)


def naive_order(w, h):
  """ExactOBS as written in the paper, one deletion and one inverse at a time."""
  left, w, order, rises = list(range(len(w))), w.copy(), [], []
  while left:
    inverse = np.linalg.inv(h[np.ix_(left, left)])
    saliency = w[left] ** 2 / (2 * np.diag(inverse))
    q = int(np.argmin(saliency))
    order.append(left[q])
    rises.append(saliency[q])
    w[left] -= w[left[q]] / inverse[q, q] * inverse[:, q]
    left.pop(q)
  return order, rises


@pytest.mark.parametrize("block", [1, 3, 4, 32])
def test_lazy_downdates_give_the_naive_order(block):
  with jax.enable_x64(True):
    n, rows = 10, 5
    w = np.random.default_rng(3).normal(size=(rows, n))
    shared, _ = quadratic(n, seed=4)
    own = np.stack([quadratic(n, seed=5 + i)[0] for i in range(rows)])
    for h in (shared, own):
      order = layerwise_obs.deletion_order(
        jnp.asarray(w), jnp.asarray(h), damping=0.0, block=block, batch_size=2
      )
      for i in range(rows):
        index, rise = naive_order(w[i], h if h.ndim == 2 else h[i])
        assert order.index[i].tolist() == index
        np.testing.assert_allclose(order.rise[i], rise, rtol=1e-7)


def test_compensation_of_a_set_is_deletion_one_by_one():
  with jax.enable_x64(True):
    h, w = quadratic(9, seed=2)
    result = obs.optimal_brain_surgeon(
      jnp.asarray(w), jnp.asarray(h), jnp.ones(9, bool), 4
    )
    v = compensation.compensate(
      jnp.asarray(w)[None],
      jnp.asarray(h),
      result.mask[None],
      damping=0,
      tolerance=1e-13,
    )
    np.testing.assert_allclose(v[0], result.weights, rtol=1e-8)
    assert not np.asarray(v[0])[~np.asarray(result.mask)].any()


def test_solver_survives_float32_and_empty_rows():
  x = np.random.default_rng(0).normal(size=(500, 60)) * np.logspace(0, -2, 60)[None]
  h = compensation.damped(jnp.asarray(x.T @ x / 500, jnp.float32), 0.01)
  w = jax.random.normal(jax.random.key(0), (20, 60))
  mask = jax.random.bernoulli(jax.random.key(1), 0.3, (20, 60)).at[3].set(False)
  v = np.asarray(compensation.solve_live(h, w @ h, mask))
  for i in range(20):
    expected = constrained_minimum(np.float64(h), np.float64(w[i]), np.asarray(mask[i]))
    np.testing.assert_allclose(v[i], expected, atol=2e-3)


def naive_sparse_gpt(w, h, density, block):
  u = np.linalg.cholesky(np.linalg.inv(h)).T
  w, mask = w.copy(), np.ones(w.shape, bool)
  for start in range(0, w.shape[1], block):
    stop = min(start + block, w.shape[1])
    scores = w[:, start:stop] ** 2 / np.diag(u)[start:stop][None] ** 2
    kept = round(density * scores.size)
    threshold = np.sort(scores.ravel())[::-1][kept - 1]
    mask[:, start:stop] = scores >= threshold
    for i in range(start, stop):
      error = np.where(mask[:, i], 0, w[:, i]) / u[i, i]
      w[:, i:] -= error[:, None] * u[i, i:][None]
  return np.where(mask, w, 0), mask


@pytest.mark.parametrize("block", [4, 5, 128])
def test_sparse_gpt_is_the_papers_algorithm(block):
  with jax.enable_x64(True):
    h, _ = quadratic(12, seed=6)
    w = np.random.default_rng(1).normal(size=(6, 12))
    got = sparse_gpt(jnp.asarray(w), jnp.asarray(h), 0.5, block=block, damping=0)
    weights, mask = naive_sparse_gpt(w, h, 0.5, block)
    np.testing.assert_array_equal(got.mask, mask)
    np.testing.assert_allclose(got.weights, weights, rtol=1e-8, atol=1e-12)


def test_n_m_masks_hold_in_every_group_and_compensation_helps():
  rng = np.random.default_rng(2)
  x = rng.normal(size=(200, 4)) @ rng.normal(size=(4, 16)) + 0.3 * rng.normal(
    size=(200, 16)
  )
  w = jnp.asarray(rng.normal(size=(8, 16)), jnp.float32)
  h = jnp.asarray(x.T @ x / 100, jnp.float32)
  for block in (8, 128):
    got = sparse_gpt(w, h, n_m=(2, 4), block=block)
    assert (np.asarray(got.mask).reshape(-1, 4).sum(1) == 2).all()
    assert not np.asarray(got.weights)[~np.asarray(got.mask)].any()
    off = lambda v: float(jnp.mean((jnp.asarray(x, jnp.float32) @ (v - w).T) ** 2))
    assert off(got.weights) < 0.5 * off(jnp.where(got.mask, w, 0))


def test_woodfisher_inverse_and_update():
  with jax.enable_x64(True):
    g = np.random.default_rng(0).normal(size=(30, 6))
    w = np.random.default_rng(1).normal(size=6)
    fisher = woodfisher.block_inverse(jnp.asarray(g), block=4, damping=0.1)
    whole = g.T @ g / 30 + 0.1 * np.eye(6)
    expected = np.linalg.inv(whole[:4, :4])
    np.testing.assert_allclose(fisher.blocks[0], expected, rtol=1e-9)
    mask = np.array([True, False, True, False, False, True])
    v = woodfisher.woodfisher_compensate(jnp.asarray(w), fisher, jnp.asarray(mask))
    h = np.zeros((6, 6))
    h[:4, :4], h[4:, 4:] = whole[:4, :4], whole[4:, 4:]
    np.testing.assert_allclose(
      v, constrained_minimum(h, w, mask), rtol=1e-8, atol=1e-12
    )
    saliency = woodfisher.woodfisher_saliency(jnp.asarray(w), fisher)
    np.testing.assert_allclose(saliency, w**2 / (2 * np.diag(np.linalg.inv(h))))


def test_mlp_pruning_predicts_a_linear_layers_loss_exactly():
  with jax.enable_x64(True):
    x = np.random.default_rng(0).normal(size=(40, 6)) + 1.0
    w = np.random.default_rng(1).normal(size=(6, 3))
    biased = {"kernel": jnp.asarray(w), "bias": jnp.ones(3)}
    for layer, live, uniform in (
      (biased, 12, False),
      (biased, 5, True),
      ({"kernel": jnp.asarray(w)}, 5, False),
    ):
      params = {"Dense_0": layer}
      prepared = mlp_obs.prepare(params, jnp.asarray(x), loss="squared", damping=0.0)
      pruned = mlp_obs.prune(params, prepared, live, uniform=uniform, damping=0.0)
      kernel = np.asarray(pruned.params["Dense_0"]["kernel"])
      mask = np.asarray(pruned.masks["Dense_0"]["kernel"])
      assert mask.sum() == live
      assert not kernel[~mask].any()
      change = x @ (kernel - w)
      if "bias" in layer:
        # The best bias there is: least squares on the mean.
        change -= change.mean(0)
        shift = np.asarray(pruned.params["Dense_0"]["bias"]) - 1.0
        np.testing.assert_allclose(shift, -(x @ (kernel - w)).mean(0), atol=1e-12)
      actual = np.mean(np.sum(change**2, 1)) / 2
      np.testing.assert_allclose(pruned.predicted, actual, rtol=1e-6)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: obs.live_inverse(jnp.eye(2), jnp.ones(2, bool), -1.0), "damping"),
    (lambda: layerwise_obs.deletion_order(jnp.ones((1, 3)), jnp.eye(2)), "hessian"),
    (lambda: sparse_gpt(jnp.ones((1, 4)), jnp.eye(4), 0.0), "density"),
    (lambda: sparse_gpt(jnp.ones((1, 4)), jnp.eye(4), n_m=(2, 3)), "divide"),
    (lambda: woodfisher.fisher_inverse(jnp.ones((1, 2)), 0.0), "above 0, got 0.0"),
  ],
)
def test_bad_input_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
