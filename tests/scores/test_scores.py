"""Each score against a table worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj

# A dead weight, a large one that shrinks, a small one that grows.
W = jnp.array([[0.0, 2.0, -0.5]])
G = jnp.array([[3.0, 1.0, 4.0]])


def inputs(second=None, dtype=jnp.float32):
  params = {"kernel": W.astype(dtype), "bias": None}
  grads = {"kernel": G.astype(dtype), "bias": None}
  moments = sj.Moments(grads, {"kernel": second, "bias": None})
  masks = {"kernel": W != 0, "bias": None}
  return sj.ScoreInputs(params, grads, moments, masks, jax.random.key(0), jnp.int32(1))


V = jnp.array([[1.0, 4.0, 16.0]])


@pytest.mark.parametrize(
  ("score", "second", "expected"),
  [
    (sj.magnitude, None, [0.0, 2.0, 0.5]),
    (sj.gradient, None, [3.0, 1.0, 4.0]),
    (sj.taylor, None, [0.0, 2.0, 2.0]),  # |w g|
    (sj.movement, None, [0.0, -2.0, 2.0]),  # -w g
    (sj.fisher, None, [0.0, 2.0, 2.0]),  # g^2 w^2 / 2
    (sj.fisher, V, [0.0, 8.0, 2.0]),  # v w^2 / 2
  ],
)
def test_scores(score, second, expected):
  for dtype in (jnp.float32, jnp.bfloat16):
    given = score(inputs(second, dtype))
    assert given["bias"] is None
    same = score in (sj.magnitude, sj.gradient)
    assert given["kernel"].dtype == (dtype if same else jnp.float32)
    np.testing.assert_array_equal(jnp.abs(given["kernel"][0, :1]), expected[:1])
    np.testing.assert_array_equal(given["kernel"][0], expected)


@pytest.mark.parametrize(
  "score",
  [sj.taylor, sj.movement, sj.fisher, sj.magnitude_and_gradient(0.01)],
  ids=["taylor", "movement", "fisher", "magnitude_and_gradient"],
)
def test_scores_of_16_bits_are_not_rounded_to_ties_or_zero(score):
  # Products near 1e-8, below the smallest float16; sums that differ in the 13th bit.
  w = jnp.array([[1e-4, 1e-4, 1e-4]], jnp.float16)
  g = jnp.array([[1e-4, 2e-4, 3e-4]], jnp.float16)
  given = score(sj.ScoreInputs(w, g, sj.Moments(None, None), w > 0, None, None))
  assert given.dtype == jnp.float32
  assert len(np.unique(given)) == 3
  assert np.all(np.diff(np.abs(given[0])) > 0)


@pytest.mark.parametrize("perturb", [lambda s: sj.noisy(s, 1e-9), sj.sampled])
def test_perturbed_scores_have_the_precision_of_the_score(perturb):
  with jax.enable_x64(True):
    w = jnp.asarray(1 + np.array([[0, 1e-13]]), jnp.float64)
    score = perturb(sj.magnitude)
    args = sj.ScoreInputs(w, w, None, w > 0, jax.random.key(0), jnp.int32(0))
    both = score(args)
    assert both.dtype == jnp.float64
    if perturb is not sj.sampled:
      lone = score(args._replace(params=w.at[0, 1].set(1)))
      assert both[0, 1] - lone[0, 1] == pytest.approx(1e-13, rel=1e-2)


def test_hutchinson_is_the_curvature_of_the_moments_weights():
  """h = 12 a w^2 for the loss a w^4: exact from one sample, for H is diagonal."""
  params = {"kernel": jnp.full((1, 3), 7.0), "bias": jnp.array([2.0])}
  loss = lambda p: jnp.sum(p["bias"]) * jnp.sum(p["kernel"] ** 4)
  score = sj.hutchinson(loss, params, samples=1)
  given = jax.jit(score)(inputs())
  assert given["bias"] is None
  # 12 * 2 w^2 * w^2 / 2 = 12 w^4
  np.testing.assert_allclose(given["kernel"], [[0.0, 192.0, 0.75]], rtol=1e-6)


def test_a_user_function_is_a_score():
  """Any `(inputs) -> tree` drops, here the weights with the largest gradients."""
  worst = lambda inputs: jax.tree.map(lambda g: -jnp.abs(g), inputs.grads)
  drop = sj.drop(worst, 0.4)
  args = inputs()._replace(masks={"kernel": jnp.ones((1, 3), bool), "bias": None})
  budgets = {"kernel": jnp.int32(3), "bias": None}
  top = sj.Topology(args.masks, budgets, jnp.asarray(True))
  top, _ = drop.update(args, top, ())
  assert top.masks["kernel"].astype(int).tolist() == [[0, 1, 0]]


def test_hutchinson_refuses_no_samples():
  with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
    sj.hutchinson(lambda p: jnp.float32(0), {"kernel": W}, samples=0)
