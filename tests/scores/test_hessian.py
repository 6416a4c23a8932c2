import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.core import Moments, ScoreInputs
from sparsejax.scores import _gauss_newton as gauss_newton
from sparsejax.scores import _hessian as hessian
from sparsejax.scores import obd, obd_saliency


def mlp(params, x):
  for i, layer in enumerate(params):
    x = x @ layer["kernel"] + layer["bias"][None]
    x = jnp.tanh(x) if i < len(params) - 1 else x
  return x


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sums_of_16_bits_do_not_stop_to_grow(dtype):
  """1,000 squares of 1 are 256 in bfloat16, where 256 + 1 = 256; 1e-4 squared is 0."""
  x, w = jnp.ones((1000, 1), dtype), jnp.ones((1, 1), dtype)
  small = 1e-4 * x[:2]
  loss = lambda w, x: jnp.sum(x @ w)
  fisher = functools.partial(hessian.empirical_fisher_diagonal, loss, w, batch_size=1)
  assert fisher(x) == 1
  np.testing.assert_allclose(fisher(small), 1e-8, rtol=5e-3)
  apply = lambda w, x: x @ w
  diagonal = functools.partial(gauss_newton.gauss_newton_diagonal, apply, w)
  assert diagonal(x, loss="squared", batch_size=1) == 1
  np.testing.assert_allclose(diagonal(small, loss="squared"), 1e-8, rtol=5e-3)
  curved = lambda w: 0.5 * jnp.sum(w**2)
  key = jax.random.key(0)
  assert hessian.hutchinson_diagonal(curved, w, key, samples=1000) == 1
  np.testing.assert_allclose(obd_saliency(small, small), 5e-13, rtol=1e-2)


@pytest.fixture
def net():
  keys = jax.random.split(jax.random.key(0), 5)
  sizes = ((4, 5), (5, 3))
  params = [
    {"kernel": jax.random.normal(k, s), "bias": 0.1 * jnp.ones(s[1])}
    for k, s in zip(keys, sizes, strict=False)
  ]
  return params, jax.random.normal(keys[2], (7, 4))


def test_exact_diagonal_is_the_hessians():
  h = np.array([[2.0, 1.0, 0.0], [1.0, 3.0, -1.0], [0.0, -1.0, 5.0]], np.float32)
  params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0])}

  def loss(p):
    w = jnp.concatenate([p["a"], p["b"]])
    return w @ jnp.array(h) @ w / 2

  for batch_size in (1, 2, 8):
    diagonal = hessian.hessian_diagonal(loss, params, batch_size=batch_size)
    np.testing.assert_allclose(diagonal["a"], [2, 3], rtol=1e-6)
    np.testing.assert_allclose(diagonal["b"], [5], rtol=1e-6)


def test_hutchinson_is_unbiased_with_the_stated_variance():
  h = jnp.array([[2.0, 1.0, 0.0], [1.0, 3.0, -2.0], [0.0, -2.0, 5.0]])
  loss = lambda w: w @ h @ w / 2
  keys = jax.random.split(jax.random.key(1), 4000)
  estimate = jax.vmap(
    lambda k: hessian.hutchinson_diagonal(loss, jnp.zeros(3), k, samples=2)
  )(keys)
  np.testing.assert_allclose(estimate.mean(0), [2, 3, 5], atol=0.1)
  np.testing.assert_allclose(estimate.var(0), [0.5, 2.5, 2.0], rtol=0.1)


def test_closed_form_equals_the_generic_gauss_newton(net):
  params, x = net
  for loss in ("softmax", "squared"):
    generic = gauss_newton.gauss_newton_diagonal(
      mlp, params, x, loss=loss, batch_size=3
    )
    closed = gauss_newton.mlp_gauss_newton_diagonal(
      params, x, loss=loss, activation=jnp.tanh
    )
    for a, b in zip(generic, closed, strict=True):
      np.testing.assert_allclose(a["kernel"], b["kernel"], rtol=2e-4)
      np.testing.assert_allclose(a["bias"], b["bias"], rtol=2e-4)


def test_gauss_newton_is_the_hessian_of_a_linear_model():
  x = jax.random.normal(jax.random.key(2), (6, 3))
  w = jax.random.normal(jax.random.key(3), (3, 4))
  labels = jnp.array([0, 1, 2, 3, 0, 1])

  def loss(w):
    logits = jax.nn.log_softmax(x @ w)
    return -jnp.mean(jnp.take_along_axis(logits, labels[:, None], 1))

  exact = hessian.hessian_diagonal(loss, w)
  closed = gauss_newton.mlp_gauss_newton_diagonal({"Dense_0": {"kernel": w}}, x)
  np.testing.assert_allclose(closed["Dense_0"]["kernel"], exact, rtol=1e-4, atol=1e-6)


def test_fisher_does_not_depend_on_the_chunks():
  loss = lambda w, x: jnp.sum(w * x)
  x = jnp.arange(10.0).reshape(5, 2)
  for batch_size in (1, 2, 5, 9):
    fisher = hessian.empirical_fisher_diagonal(
      loss, jnp.ones(2), x, batch_size=batch_size
    )
    np.testing.assert_allclose(
      fisher, [24.0, 33.0]
    )  # mean of 0 4 16 36 64; 1 9 25 49 81


def test_obd_is_exact_for_one_deletion_on_a_diagonal_quadratic():
  h, w = jnp.array([1.0, 4.0]), jnp.array([3.0, -1.0])
  loss = lambda v: jnp.sum(h * (v - w) ** 2) / 2
  saliency = obd_saliency(w, hessian.hessian_diagonal(loss, w))
  rises = [loss(w.at[i].set(0)) for i in range(2)]
  np.testing.assert_allclose(saliency, rises, rtol=1e-6)


def test_obd_score_leaves_out_what_is_not_sparsified():
  w = {"kernel": jnp.array([2.0, 3.0]), "bias": None}
  diagonal = {"kernel": jnp.array([1.0, -1.0]), "bias": jnp.ones(4)}
  inputs = ScoreInputs(w, w, Moments(None, None), w, jax.random.key(0), jnp.int32(0))
  score = obd(diagonal)(inputs)
  assert score["bias"] is None
  assert score["kernel"].tolist() == [2.0, 0.0]


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: hessian.hessian_diagonal(jnp.sum, jnp.ones(2), batch_size=0),
      "batch_size",
    ),
    (
      lambda: hessian.hutchinson_diagonal(
        jnp.sum, jnp.ones(2), jax.random.key(0), samples=0
      ),
      "samples must be at least 1, got 0",
    ),
    (lambda: gauss_newton.output_factors(jnp.ones(2), "hinge"), "hinge"),
    (lambda: gauss_newton.dense_layers([{"kernel": jnp.ones(3)}]), "dense layers"),
  ],
)
def test_bad_input_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
