"""Methods with soft masks, against tables worked by hand and references in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj

SGD = optax.sgd(0.5)


def trained(tx, params, gradient, steps):
  """Returns the state after each step; `gradient` maps effective weights to dL/de."""

  @jax.jit
  def step(params, state):
    weights, pull = jax.vjp(lambda p: sj.effective(p, state), params)
    [grads] = pull(jax.tree.map(gradient, weights))
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  record = [(params, jax.jit(tx.init)(params))]
  for _ in range(steps):
    record.append(step(*record[-1]))
  return record


def draw(*shape):
  return np.random.default_rng(0).normal(size=shape)


def projected(w, group):
  """S(w) of S-STE, for groups of weights that follow one another in axis 0."""
  size = np.abs(w).reshape(-1, group, w.shape[1])
  threshold = np.sort(size, axis=1)[:, group // 2 - 1 : group // 2]
  return np.sign(w) * np.maximum(size - threshold, 0).reshape(w.shape)


@pytest.mark.parametrize("group", [4, 8])
def test_s_ste_shrinks_by_the_largest_masked_weight_of_the_group(group):
  """2:4, and half of a layer of 8 x 1, for three steps of L = sum (e - 1)^2."""
  w = draw(8, 3 if group == 4 else 1)
  structure = sj.n_m(2, 4) if group == 4 else None
  tx = sj.s_ste(SGD, 0.5, structure=structure)
  record = trained(tx, {"kernel": jnp.asarray(w, jnp.float32)}, lambda e: e - 1, 3)
  s = projected(w, group)
  beta = np.sum(w * s) / np.sum(s * s)
  for params, state in record:
    e = beta * projected(w, group)
    np.testing.assert_allclose(params["kernel"], w, rtol=1e-5, atol=1e-6)
    effective = sj.effective(params, state)["kernel"]
    np.testing.assert_allclose(effective, e, rtol=1e-5, atol=1e-6)
    mask = sj.masks(state)["kernel"]
    np.testing.assert_array_equal(mask, e != 0)
    assert int(mask.sum()) == w.size // 2
    sj.check_sparse(params, state)
    w = w - 0.5 * (e - 1)
  first, last = (sj.masks(record[i][1])["kernel"] for i in (0, -1))
  assert not np.array_equal(first, last)


def test_s_ste_is_continuous_where_masks_change():
  tx = sj.s_ste(SGD, 0.5)
  seen = []
  for last in (2.999, 3.001):
    params = {"kernel": jnp.array([[4.0, 3.0, last, 1.0]])}
    seen.append(sj.effective(params, tx.init(params))["kernel"])
  np.testing.assert_allclose(*seen, atol=0.01)
  hard = sj.straight_through(SGD, 0.5)
  both = [
    sj.effective(p, hard.init(p))["kernel"]
    for p in ({"kernel": jnp.array([[4.0, 3.0, x, 1.0]])} for x in (2.999, 3.001))
  ]
  assert np.abs(both[0] - both[1]).max() > 2.9


def test_s_ste_scales_each_leaf_and_thresholds_each_layer():
  """Two stacked layers of four: thresholds 2 and 5, one beta for both."""
  w = jnp.array([[[4.0, -3, 2, 1]], [[5, 8, -9, 1]]])
  tx = sj.s_ste(SGD, 0.5, stacked="kernel")
  state = tx.init({"kernel": w})
  s = np.array([[[2, -1, 0, 0]], [[0, 3, -4, 0]]])
  beta = (8 + 3 + 24 + 36) / (4 + 1 + 9 + 16)
  effective = sj.effective({"kernel": w}, state)["kernel"]
  np.testing.assert_allclose(effective, beta * s, rtol=1e-6)
  # Nothing is masked, or all weights are equal: beta stays 1.
  for density, values in ((1.0, [[3.0, 1]]), (0.5, [[2.0, 2]])):
    params = {"kernel": jnp.array(values)}
    state = sj.s_ste(SGD, density).init(params)
    assert float(state.transform_state["kernel"]) == 1
    assert jnp.isfinite(sj.soft_masks(state)["kernel"]).all()


def soft_top_k(w, k, beta):
  """The soft mask of one pool of weights, by bisection in float64."""
  z = beta * np.abs(w)
  low, high = z.min() - 50, z.max() + 50
  for _ in range(200):
    t = (low + high) / 2
    low, high = (t, high) if np.sum(1 / (1 + np.exp(t - z))) > k else (low, t)
  return 1 / (1 + np.exp(t - z))


def pulled_back(w, g, k, beta):
  """The derivative of sum g m(w) w by central differences."""
  out, h = np.zeros_like(w), 1e-5
  for i in np.ndindex(*w.shape):
    d = np.zeros_like(w)
    d[i] = h
    ends = [np.sum(g * soft_top_k(x, k, beta) * x) for x in (w + d, w - d)]
    out[i] = (ends[0] - ends[1]) / (2 * h)
  return out


@pytest.mark.parametrize("pool", ["layer", "network"])
def test_spartan_is_soft_top_k_with_dual_averaging(pool):
  """Six steps: dense, two of warm-up, two that sharpen, and two with fixed masks."""
  ws = [draw(4, 6), 2 * draw(2, 8)[::-1]]
  tx = sj.spartan(
    SGD,
    0.25,
    end_step=4,
    warmup_steps=2,
    beta=2.0,
    final_beta=10.0,
    distribution=None if pool == "network" else sj.uniform,
  )
  params = {"a": jnp.asarray(ws[0], jnp.float32), "b": jnp.asarray(ws[1], jnp.float32)}
  record = trained(tx, params, lambda e: e - 0.5, 6)
  split = (lambda x: [x]) if pool == "network" else (lambda x: [[y] for y in x])
  flat = lambda xs: np.concatenate([x.ravel() for x in xs])
  back = lambda v, xs: np.split(v, np.cumsum([x.size for x in xs])[:-1])
  fixed = None
  for step, (params, state) in enumerate(record):
    density = max(1 - 0.75 * step / 2, 0.25)
    beta = min(2 + 8 * step / 4, 10)
    new, es, masks = [], [], []
    for xs in split(ws):
      w = flat(xs)
      k = round(density * w.size)
      m = np.ones_like(w) if k == w.size else soft_top_k(w, k, beta)
      live = np.zeros(w.size, bool)
      live[np.argsort(-np.abs(w))[:k]] = True
      if step > 4:
        m, live = fixed.pop(0)
      e = np.where(live, m * w, 0)
      g = e - 0.5
      if step >= 4:
        d = np.where(live, m * g, 0)
        fixed = (fixed or []) + [(m, live)]
      else:
        d = g if k == w.size else pulled_back(w, g, k, beta)
      es += back(e, xs)
      masks += back(live, xs)
      new += back(w - 0.5 * d, xs)
    for i, name in enumerate("ab"):
      shape = params[name].shape
      close = dict(rtol=2e-3, atol=2e-4)
      np.testing.assert_allclose(params[name], ws[i].reshape(shape), **close)
      effective = sj.effective(params, state)[name]
      np.testing.assert_allclose(effective, es[i].reshape(shape), **close)
      np.testing.assert_array_equal(sj.masks(state)[name], masks[i].reshape(shape))
    sj.check_sparse(params, state)
    ws = [x.reshape(w.shape) for x, w in zip(new, ws, strict=True)]


def test_spartan_layers_that_a_leaf_stacks_have_their_own_thresholds():
  w = jnp.asarray(np.stack([draw(4, 4), 10 * draw(4, 4)]), jnp.float32)
  fields = dict(end_step=4, initial_density=0.25, beta=3.0)
  stacked = sj.spartan(SGD, 0.25, stacked="kernel", **fields).init({"kernel": w})
  for i in range(2):
    alone = sj.spartan(SGD, 0.25, **fields).init({"kernel": w[i]})
    soft = sj.soft_masks(alone)["kernel"]
    np.testing.assert_allclose(sj.soft_masks(stacked)["kernel"][i], soft, rtol=1e-4)
    # All weights of the soft mask sum to k, the masked ones included.
    assert float(alone.soft_masks["kernel"].sum()) == pytest.approx(4, rel=1e-4)


@pytest.mark.parametrize("density", [0.25, None])
def test_gates_sharpen_and_harden(density):
  """Momentum on w, SGD on s, L = sum (e - 1)^2 / 2; hard from step 4 on."""
  w = draw(4, 6)
  s, trace = np.full_like(w, 0.05), np.zeros_like(w)
  tx = sj.continuous_sparsification(
    optax.sgd(0.1, momentum=0.9),
    density,
    end_step=4,
    initial_score=0.05,
    penalty=0.3,
    final_beta=16.0,
    score_optimizer=optax.sgd(0.2),
  )
  params = {"kernel": jnp.asarray(w, jnp.float32)}
  record = trained(tx, params, lambda e: e - 1, 6)
  live = np.ones(w.shape, bool)
  for step, (params, state) in enumerate(record):
    beta = min(2.0**step, 16.0)
    if step < 4:
      m = 1 / (1 + np.exp(-beta * s))
    elif step == 4:
      k = w.size // 4 if density else np.sum(s > 0)
      live = s >= np.sort(s.ravel())[-k]
      m = live.astype(float)
    e = m * w
    close = dict(rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(params["kernel"], w, **close)
    np.testing.assert_allclose(state.transform_state.scores["kernel"], s, **close)
    np.testing.assert_allclose(sj.effective(params, state)["kernel"], e, **close)
    np.testing.assert_array_equal(sj.masks(state)["kernel"], live)
    assert int(state.budgets["kernel"]) == live.sum()
    sj.check_sparse(params, state)
    if step < 4:
      s = s - 0.2 * beta * m * (1 - m) * (w * (e - 1) + 0.3)
    trace = 0.9 * trace + m * (e - 1)
    w = w - 0.1 * trace
  assert 0 < live.sum() < live.size


def test_gates_harden_at_the_last_mask_update():
  tx = sj.continuous_sparsification(SGD, 0.5, update_every=3, end_step=8)
  params = {"kernel": jnp.asarray(draw(4, 4), jnp.float32)}
  record = trained(tx, params, lambda e: e - 1, 8)
  live = [int(sj.masks(state)["kernel"].sum()) for _, state in record]
  assert live == [16] * 6 + [8] * 3
  hard = sj.soft_masks(record[6][1])["kernel"]
  np.testing.assert_array_equal(hard, sj.masks(record[6][1])["kernel"])


@pytest.mark.parametrize(
  ("call", "error", "message"),
  [
    (
      lambda: sj.s_ste(SGD, None, structure=sj.n_m(2, 4, groups="strided")).init(
        {"kernel": jnp.ones((8, 2))}
      ),
      ValueError,
      r"structure must be sj.n_m\(n, m\) with adjacent groups of inputs for s_ste",
    ),
    (
      lambda: sj.s_ste(SGD, 0.5, distribution=None),
      TypeError,
      "distribution must be a function",
    ),
  ],
)
def test_bad_input_is_named(call, error, message):
  with pytest.raises(error, match=message):
    call()


def test_soft_masks_have_the_precision_of_the_weights():
  """In float64: beta (|w| - t) of S-STE, and sigmoid(s) w at the first step."""
  with jax.enable_x64(True):
    w = np.array([[4.0, -3.0, 2.0, 1.0]]).T / 3
    params = {"kernel": jnp.asarray(w)}
    tx = sj.s_ste(optax.sgd(0.1), density=None, structure=sj.n_m(2, 4))
    seen = sj.effective(params, tx.init(params))["kernel"]
    assert seen.dtype == jnp.float64
    # S = 2/3, -1/3, 0, 0;  beta = (8 + 3) / (4 + 1)
    np.testing.assert_allclose(seen.T, [[4.4 / 3, -2.2 / 3, 0, 0]], rtol=1e-14)
    tx = sj.continuous_sparsification(
      optax.sgd(0.1), density=0.5, end_step=9, initial_score=0.1
    )
    seen = sj.effective(params, tx.init(params))["kernel"]
    np.testing.assert_allclose(seen, w / (1 + np.exp(-0.1)), rtol=1e-14)


def test_spartan_is_sparse_after_its_last_mask_update():
  """Mask updates at steps 4 and 8; the density would be final at step 10."""
  tx = sj.spartan(SGD, 0.25, update_every=4, end_step=10, warmup_steps=10)
  params = {"kernel": jnp.asarray(draw(8, 8), jnp.float32)}
  _, state = trained(tx, params, lambda e: 0 * e, 12)[-1]
  assert int(sj.masks(state)["kernel"].sum()) == 16
