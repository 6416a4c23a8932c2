"""Methods with soft masks, against tables worked by hand and references in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj

SGD = optax.sgd(0.5)


def trained(tx, params, gradient, steps):
  """What each step leaves; `gradient` maps effective weights to dL/de."""

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
