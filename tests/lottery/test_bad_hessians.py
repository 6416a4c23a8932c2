"""Hessians as they come: singular, zero, of few samples, not finite; any dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from sparsejax import second_order
from sparsejax.second_order import _compensation as compensation
from sparsejax.second_order import _layerwise_obs as layerwise_obs
from sparsejax.second_order import _mlp_obs as mlp_obs
from sparsejax.second_order import _obs as obs
from sparsejax.second_order import _woodfisher as woodfisher
from sparsejax.second_order import sparse_gpt

ROWS, N = 6, 16


def weights(seed=0):
  return np.random.default_rng(seed).normal(size=(ROWS, N))


def inputs(samples, seed=1):
  return np.random.default_rng(seed).normal(size=(samples, N))


def hessians():
  """Positive semidefinite matrices of every rank, by name."""
  x = inputs(40)
  dead = x.copy()
  dead[:, [0, 3, 4, 5, 6, 15]] = 0
  outlier = x * np.where(np.arange(N) == 2, 1e3, 1)[None]
  return {
    "zero": np.zeros((N, N)),
    "one sample": inputs(1).T @ inputs(1),
    "five samples": inputs(5).T @ inputs(5) / 5,
    "equal columns": np.ones((N, N)),
    "dead columns": dead.T @ dead / 40,
    "an outlier": outlier.T @ outlier / 40,
    "large": 1e30 * x.T @ x,
    "small": 1e-30 * x.T @ x,
    "full": x.T @ x / 40,
  }


def loss(h, v, w):
  return np.einsum("rm,mn,rn->r", v - w, h, v - w)


def least_loss(h, w, mask):
  """The least of (v - w)^T H (v - w) over v = 0 outside the mask, by pseudo-inverse."""
  v = np.zeros_like(w)
  for i, live in enumerate(mask):
    target = (h @ w[i])[live]
    v[i, live] = np.linalg.pinv(h[np.ix_(live, live)], rcond=1e-12) @ target
  return loss(h, v, w)


@pytest.mark.parametrize(
  ("name", "damping"),
  [(name, 0.0) for name in sorted(hessians())] + [("zero", 0.01), ("one sample", 0.01)],
)
def test_counts_are_exact_for_every_hessian(name, damping):
  h, w = jnp.asarray(hessians()[name], jnp.float32), jnp.asarray(weights(), jnp.float32)
  for kwargs in ({"density": 0.3}, {"density": 0.5, "block": 5}, {"n_m": (2, 4)}):
    got = sparse_gpt(w, h, damping=damping, **kwargs)
    mask = np.asarray(got.mask)
    if "n_m" in kwargs:
      assert (mask.reshape(-1, 4).sum(1) == 2).all()
    else:
      assert mask.sum() == round(kwargs["density"] * ROWS * N)
    assert np.isfinite(got.weights).all()
    assert not np.asarray(got.weights)[~mask].any()
  order = layerwise_obs.deletion_order(w, h, damping=damping)
  assert (np.sort(order.index, 1) == np.arange(N)[None]).all()
  assert np.isfinite(order.rise).all()
  if damping == 0:
    result = obs.optimal_brain_surgeon(w[0], h, jnp.ones(N, bool), 5)
    assert result.mask.sum() == 5
    assert np.isfinite(result.weights).all()
    assert not np.asarray(result.weights)[~np.asarray(result.mask)].any()


@pytest.mark.parametrize("name", sorted(hessians()))
def test_weights_are_compensated_whatever_the_rank(name):
  h, w = hessians()[name], weights()
  with jax.enable_x64(True):
    got = sparse_gpt(jnp.asarray(w), jnp.asarray(h), 0.5, damping=0)
    mask = np.asarray(got.mask)
    v = compensation.compensate(
      jnp.asarray(w), jnp.asarray(h), got.mask, damping=0, tolerance=1e-12
    )
    plain = loss(h, np.where(mask, w, 0), w)
    least = least_loss(h, w, mask)
    slack = 1e-9 * np.max(plain) + 1e-300
    # No better set of weights exists, and SparseGPT lies between it and no change.
    np.testing.assert_allclose(loss(h, np.asarray(v), w), least, rtol=1e-6, atol=slack)
    assert (loss(h, np.asarray(got.weights), w) >= least - slack).all()
    assert loss(h, np.asarray(got.weights), w).sum() <= plain.sum() + slack


def test_a_tolerance_below_rounding_does_not_blow_up_singular_systems():
  """A quarter as many samples as weights, in float32, where 1e-8 cannot be reached."""
  x = np.random.default_rng(0).normal(size=(20, 80)).astype(np.float32)
  w = np.random.default_rng(1).normal(size=(8, 80)).astype(np.float32)
  mask = np.random.default_rng(2).random(w.shape) < 0.5
  h = x.T @ x / len(x)
  v = np.asarray(compensation.compensate(w, h, mask, damping=0, tolerance=1e-8))
  assert (loss(h, v, w) < 1e-6 * loss(h, np.where(mask, w, 0), w)).all()
  assert np.abs(v).max() < 2 * np.abs(w).max() + 10


def test_no_curvature_means_magnitude_and_no_change():
  w, h = jnp.asarray(weights(), jnp.float32), jnp.zeros((N, N))
  got = sparse_gpt(w, h, n_m=(2, 4), damping=0)
  groups = np.abs(np.asarray(w)).reshape(-1, 4)
  best = groups >= np.sort(groups, 1)[:, [2]]
  np.testing.assert_array_equal(np.asarray(got.mask).reshape(-1, 4), best)
  np.testing.assert_array_equal(got.weights, np.where(got.mask, w, 0))
  np.testing.assert_array_equal(
    compensation.compensate(w, h, got.mask, damping=0), np.where(got.mask, w, 0)
  )


def test_dead_columns_go_first_and_take_nothing_along():
  """A column without inputs costs nothing; the others are as if it were not there."""
  with jax.enable_x64(True):
    h, w = hessians()["dead columns"], weights()
    dead = np.diag(h) == 0
    mask = np.ones((ROWS, N), bool)
    mask[:, 7] = False
    v = compensation.compensate(
      jnp.asarray(w), jnp.asarray(h), jnp.asarray(mask), damping=0, tolerance=1e-13
    )
    np.testing.assert_array_equal(np.asarray(v)[:, dead], w[:, dead])
    alive = ~dead
    small = compensation.compensate(
      jnp.asarray(w[:, alive]),
      jnp.asarray(h[np.ix_(alive, alive)]),
      jnp.asarray(mask[:, alive]),
      damping=0,
      tolerance=1e-13,
    )
    np.testing.assert_allclose(np.asarray(v)[:, alive], small, rtol=1e-9)
    order = layerwise_obs.deletion_order(jnp.asarray(w), jnp.asarray(h), damping=0)
    first = np.sort(np.asarray(order.index)[:, : dead.sum()], 1)
    np.testing.assert_array_equal(first, np.tile(np.flatnonzero(dead)[None], (ROWS, 1)))


def test_few_samples_lose_nothing_down_to_their_number():
  """Five weights meet five samples exactly: until then a deletion costs nothing."""
  with jax.enable_x64(True):
    h, w = hessians()["five samples"], weights()
    order = layerwise_obs.deletion_order(jnp.asarray(w), jnp.asarray(h), damping=0)
    rise = np.asarray(order.rise)
    whole = np.einsum("rm,mn,rn->r", w, h, w) / 2
    assert (rise[:, : N - 5].sum(1) < 1e-6 * whole).all()
    assert (rise.sum(1) > 0.9 * whole).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_named(bad):
  w, h = jnp.ones((2, 4)), jnp.eye(4).at[1, 2].set(bad)
  mask = jnp.ones((2, 4), bool)
  calls = (
    lambda w, h: sparse_gpt(w, h),
    lambda w, h: compensation.compensate(w, h, mask),
    lambda w, h: layerwise_obs.deletion_order(w, h),
    lambda w, h: obs.optimal_brain_surgeon(w[0], h, mask[0], 2),
  )
  for call in calls:
    with pytest.raises(ValueError, match=r"hessian must be finite, got .* at \[1, 2\]"):
      call(w, h)
    with pytest.raises(ValueError, match=r"weights must be finite, got .* at \[.*0\]"):
      call(w.at[0, 0].set(bad), jnp.eye(4))
  with pytest.raises(ValueError, match="gradients must be finite"):
    second_order.woodfisher_inverse(w.at[0, 0].set(bad))


def test_a_network_names_its_layer():
  layer = {"kernel": jnp.ones((4, 4)), "bias": jnp.zeros(4)}
  bad = {"kernel": jnp.ones((4, 3)).at[0, 0].set(jnp.nan)}
  x = jnp.asarray(inputs(8)[:, :4], jnp.float32)
  with pytest.raises(ValueError, match=r"params\['b'\]\['kernel'\] must be finite"):
    mlp_obs.prepare({"a": layer, "b": bad}, x)
  with pytest.raises(ValueError, match="inputs must be finite"):
    mlp_obs.prepare({"a": layer}, x.at[3, 1].set(jnp.inf))
  explode = {"kernel": jnp.full((4, 4), 1e30)}
  with pytest.raises(ValueError, match=r"the Hessian of params\['b'\] must be finite"):
    mlp_obs.prepare({"a": explode, "b": layer}, x)


def test_a_hessian_that_is_not_positive_is_named():
  indefinite = jnp.diag(jnp.array([1.0, 1.0, -1.0, 1.0]))
  for call in (sparse_gpt, layerwise_obs.deletion_order):
    with pytest.raises(ValueError, match="positive semidefinite, got an eigenvalue of"):
      call(jnp.ones((2, 4)), indefinite, damping=0)
  # Brain surgery takes them: what cannot be compensated goes by magnitude.
  w = jnp.array([4.0, 3.0, 2.0, 1.0])
  result = obs.optimal_brain_surgeon(w, -jnp.eye(4), jnp.ones(4, bool), 2)
  assert result.weights.tolist() == [4.0, 3.0, 0.0, 0.0]
  # -w^2 / 2 each.
  assert float(result.predicted) == -2.5


def test_under_jit_bad_hessians_give_nan_and_checkify_the_error():
  w, h = jnp.asarray(weights(), jnp.float32), jnp.eye(N).at[1, 2].set(jnp.nan)
  half = jnp.arange(N) % 2 == 0
  mask = jnp.broadcast_to(half, w.shape)
  got = jax.jit(sparse_gpt)(w, h)
  assert got.mask.sum() == ROWS * N // 2
  assert np.isnan(np.asarray(got.weights)[np.asarray(got.mask)]).all()
  assert not np.asarray(got.weights)[~np.asarray(got.mask)].any()
  v = np.asarray(jax.jit(compensation.compensate)(w, h, mask))
  assert np.isnan(v[:, ::2]).all()
  assert not v[:, 1::2].any()
  result = jax.jit(obs.optimal_brain_surgeon)(w[0], h, half, 3)
  assert result.mask.sum() == 3
  assert np.isnan(result.weights).sum() == 3
  order = jax.jit(layerwise_obs.deletion_order)(w, h)
  assert (np.sort(order.index, 1) == np.arange(N)[None]).all()
  assert np.isnan(order.rise).all()
  error, _ = jax.jit(checkify.checkify(sparse_gpt))(w, h)
  with pytest.raises(checkify.JaxRuntimeError, match="hessian must be finite"):
    error.throw()


def test_low_precision_weights_are_computed_with_in_the_statistics_dtype():
  w, h = jnp.asarray(weights(), jnp.bfloat16), hessians()["full"]
  for dtype in (jnp.float32, jnp.float64):
    with jax.enable_x64(True):
      stats = jnp.asarray(h, dtype)
      low = sparse_gpt(w, stats, 0.5)
      high = sparse_gpt(w.astype(dtype), stats, 0.5)
      assert low.weights.dtype == jnp.bfloat16
      np.testing.assert_array_equal(low.mask, high.mask)
      np.testing.assert_array_equal(low.weights, high.weights.astype(jnp.bfloat16))
      v = compensation.compensate(w, stats, low.mask)
      wide = compensation.compensate(w.astype(dtype), stats, low.mask)
      np.testing.assert_array_equal(v, wide.astype(jnp.bfloat16))
      assert layerwise_obs.deletion_order(w, stats).rise.dtype == dtype
      surgery = obs.optimal_brain_surgeon(w[0], stats, jnp.ones(N, bool), 4)
      assert surgery.weights.dtype == jnp.bfloat16
      assert surgery.mask.sum() == 4


def test_a_low_precision_network_is_pruned_and_its_biases_stay_low():
  layer = {"kernel": jnp.asarray(weights().T, jnp.bfloat16)}
  layer["bias"] = jnp.ones(ROWS, jnp.bfloat16)
  x = jnp.asarray(inputs(20), jnp.float32)
  prepared = mlp_obs.prepare([layer], x, loss="squared")
  pruned = mlp_obs.prune([layer], prepared, 40)
  assert {v.dtype for v in pruned.params[0].values()} == {jnp.dtype(jnp.bfloat16)}
  assert pruned.masks[0]["kernel"].sum() == 40


def test_uniform_shares_of_a_network_sum_to_what_was_asked_for():
  sizes = ((4, 3), (3, 3), (3, 3))
  layers = [{"kernel": jnp.ones(s) * 0.5} for s in sizes]
  prepared = mlp_obs.prepare(layers, jnp.asarray(inputs(8)[:, :4], jnp.float32))
  prune = jax.jit(lambda live: mlp_obs.prune(layers, prepared, live, uniform=True))
  for live in range(1, 31):
    pruned = prune(live)
    counts = [int(m["kernel"].sum()) for m in pruned.masks]
    assert sum(counts) == live
    exact = [live * a * b / 30 for a, b in sizes]
    assert all(abs(c - e) < 1 for c, e in zip(counts, exact, strict=True))


def test_small_blocks_keep_the_promised_total():
  """A block of four at density .1 rounds to none; together they keep 3 of 32."""
  w = jnp.asarray(np.random.default_rng(0).normal(size=(1, 32)), jnp.float32)
  got = sparse_gpt(w, jnp.eye(32), 0.1, block=4)
  assert got.mask.sum() == 3
  assert sparse_gpt(w, jnp.eye(32), 0.01, block=4).mask.sum() == 1
  traced = jax.jit(lambda d: sparse_gpt(w, jnp.eye(32), d, block=4))(jnp.float32(0.1))
  np.testing.assert_array_equal(traced.mask, got.mask)


def test_woodfisher_stays_finite_and_its_masks_hold():
  g = jnp.asarray(inputs(3), jnp.float32) * 1e4
  w = jnp.asarray(weights()[0], jnp.float32).at[0].set(0)
  mask = jnp.arange(N) % 3 == 0
  for scale, dtype in ((1.0, jnp.float32), (0.0, jnp.float32), (1.0, jnp.bfloat16)):
    fisher = woodfisher.block_inverse((scale * g).astype(dtype), block=5)
    assert np.isfinite(woodfisher.woodfisher_saliency(w, fisher)).all()
    v = np.asarray(woodfisher.woodfisher_compensate(w.astype(dtype), fisher, mask))
    assert v.dtype == dtype
    assert np.isfinite(v.astype(np.float32)).all()
    assert not v[~np.asarray(mask)].any()
