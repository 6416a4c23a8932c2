"""Mean-field theory against published and hand-derived numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import initializers
from sparsejax.initializers import mean_field


def test_critical_line_of_tanh():
  point = mean_field.critical_line(bias_variance=2.01e-5)
  assert abs(point.weight_variance - 1.05) < 1e-4
  assert abs(point.q_star / 0.02592 - 1) < 1e-3
  assert abs(mean_field.critical_line(q_star=0.025).bias_variance / 1.812e-5 - 1) < 0.01
  at_zero = mean_field.critical_line(bias_variance=0.0)
  np.testing.assert_allclose(at_zero, (1, 0, 0), atol=1e-9)


@pytest.mark.parametrize(
  ("bias_variance", "weight_variance", "q_star", "variance"),
  [
    (1e-8, 1.003919, 0.00197, 0.30),
    (1e-3, 1.189190, 0.1073, 440),
    (0.05, 1.760955, 0.5700, 3423),
  ],
)
def test_critical_line_there_and_back(bias_variance, weight_variance, q_star, variance):
  there = mean_field.critical_line(bias_variance=bias_variance)
  back = mean_field.critical_line(weight_variance=there.weight_variance)
  np.testing.assert_allclose(there.weight_variance, weight_variance, rtol=1e-5)
  np.testing.assert_allclose(back.bias_variance, bias_variance, rtol=1e-3)
  np.testing.assert_allclose(there.q_star, q_star, rtol=3e-3)
  found = mean_field.jacobian_variance(10_000, there.q_star)
  np.testing.assert_allclose(found, variance, rtol=2e-2)
  found = mean_field.q_star(there.weight_variance, bias_variance)
  np.testing.assert_allclose(found, there.q_star, rtol=1e-3)
  assert abs(mean_field.chi(there.weight_variance, there.q_star) - 1) < 1e-6


@pytest.mark.parametrize(
  ("weight_variance", "length"), [(0.95, 19), (1.0247, 770), (1.1, 645), (1.3, 111)]
)
def test_correlation_length(weight_variance, length):
  found = mean_field.correlation_length(weight_variance, 2.01e-5)
  np.testing.assert_allclose(found, length, rtol=0.02)


def test_relu():
  assert mean_field.chi(2.0, 1.0, jax.nn.relu) == pytest.approx(1)
  assert mean_field.q_map(0.7, 2.0, 0.1, jax.nn.relu) == pytest.approx(0.8)
  # The arc-cosine kernel's derivative at correlation 0: 1 / 4.
  assert mean_field.chi(2.0, 1.0, jax.nn.relu, c=0.0) == pytest.approx(0.5, rel=1e-3)


def test_q_map_agrees_with_a_wide_network():
  q = mean_field.q_map(0.5, 1.3, 0.1, layers=3)
  rng = np.random.default_rng(0)
  h = rng.normal(size=2000) * 0.5**0.5
  for _ in range(3):
    w = rng.normal(size=(2000, 2000)) * (1.3 / 2000) ** 0.5
    h = w @ np.tanh(h) + rng.normal(size=2000) * 0.1**0.5
  assert abs(h.var() / q - 1) < 0.12


def test_works_while_tracing():
  @jax.jit
  def f(x):
    return x * np.float32(mean_field.q_map(0.5, 1.0, 0.0))

  assert f(jnp.ones(())) == np.float32(mean_field.q_map(0.5, 1.0, 0.0))


def test_fourier_rates():
  delta = np.outer(np.eye(3)[1], np.eye(3)[1])
  np.testing.assert_allclose(mean_field.fourier_rates(delta, 7), 1)
  uniform = mean_field.fourier_rates(np.ones((3, 3)), (6, 6))
  assert uniform[0, 0] == 1
  assert uniform.ravel()[1:].max() < 0.7
  np.testing.assert_allclose(uniform[0, 1], (1 + 2 * np.cos(np.pi / 3)) / 3)


def test_answers_in_words():
  assert "nearly isometric at any depth" in initializers.trainable_depth(1.0, 0.0, 1000)
  words = initializers.trainable_depth(1.05, 2.01e-5, 10_000)
  assert "about 230 layers" in words or "nearly isometric for about" in words
  assert "For 10,000 layers take" in words
  assert "as wanted" in initializers.trainable_depth(0.95, 2.01e-5, 100)
  assert "not 1,000" in initializers.trainable_depth(0.95, 2.01e-5, 1000)
  assert "without end" in initializers.trainable_depth(2.5, 0.1, activation=jax.nn.relu)


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match="exactly one"):
    mean_field.critical_line()
  with pytest.raises(ValueError, match="weight_variance must be between 1"):
    mean_field.critical_line(weight_variance=0.9)
  with pytest.raises(ValueError, match="profile"):
    mean_field.fourier_rates([0, 0], 4)
