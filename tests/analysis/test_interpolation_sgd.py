import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.theory import _interpolation_sgd as sgd

BATCHES = (1, 2, 4, 64, 400)


@pytest.fixture(scope="module")
def inputs():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(400, 10)) * np.sqrt(np.linspace(1, 0.12, 10))[None]
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_spectrum_by_hand():
  s = sgd.spectrum(np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
  assert s.values.tolist() == [2.0, 0.5]
  assert sgd.critical_batch_size(s) == 4 / 1.5 + 1
  kernel = np.array([[4.0, 0.0], [0.0, 1.0]])
  np.testing.assert_allclose(sgd.kernel_spectrum(kernel).values, s.values)


def test_step_sizes_are_optimal_on_a_grid(inputs):
  s = sgd.spectrum(inputs)
  for m in BATCHES:
    best = sgd.optimal_contraction(s, m)
    np.testing.assert_allclose(
      sgd.contraction(s, m, sgd.optimal_step_size(s, m)), best, rtol=1e-9
    )
    grid = np.linspace(0.5, 1.5, 201) * sgd.optimal_step_size(s, m)
    assert best <= min(sgd.contraction(s, m, eta) for eta in grid) + 1e-12


def test_the_two_regimes_meet_at_the_critical_batch_size(inputs):
  s = sgd.spectrum(inputs)
  m = sgd.critical_batch_size(s)
  below, above = (sgd.optimal_contraction(s, m + d) for d in (-1e-9, 1e-9))
  np.testing.assert_allclose(below, above, rtol=1e-7)


def test_steps_stay_below_their_bounds_in_both_regimes(inputs):
  s = sgd.spectrum(inputs)
  assert 7 < sgd.critical_batch_size(s) < 9
  taken = {}
  for m in BATCHES:
    bound = sgd.iterations_bound(s, m, 1e-6)
    with jax.enable_x64(True):
      distance = sgd.simulate(
        jnp.asarray(inputs), m, sgd.optimal_step_size(s, m), bound, jax.random.key(m)
      )
      mean = np.asarray(jnp.mean(distance, 0))
    assert mean.min() <= 1e-6
    taken[m] = int(np.argmax(mean <= 1e-6)) + 1
    assert taken[m] <= bound
  work = [m * taken[m] for m in (1, 2, 4)]
  assert max(work) < 1.4 * min(work)
  assert taken[64] < 1.3 * taken[400]


def test_one_step_contracts_as_the_theory_says_on_average(inputs):
  """E|d|^2 after one step is at most g(m, eta), for any step size."""
  s = sgd.spectrum(inputs)
  with jax.enable_x64(True):
    for m, eta in ((1, 0.5), (8, 3.0)):
      after = sgd.simulate(jnp.asarray(inputs), m, eta, 1, jax.random.key(0), runs=4000)
      assert float(after.mean()) <= 1.02 * sgd.contraction(s, m, eta)


def test_bad_input_is_named():
  s = sgd.spectrum(np.eye(2))
  with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
    sgd.optimal_step_size(s, 0)
  with pytest.raises(ValueError, match="accuracy"):
    sgd.iterations_bound(s, 1, 1.0)
