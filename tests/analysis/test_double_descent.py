import numpy as np
import pytest

from sparsejax.theory import _double_descent as dd


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_minimum_norm_fit_is_the_pseudoinverse(shape):
  rng = np.random.default_rng(0)
  a, y = rng.normal(size=shape), rng.normal(size=(shape[0], 2))
  np.testing.assert_allclose(
    dd.minimum_norm_fit(a, y), np.linalg.pinv(a) @ y, rtol=1e-6, atol=1e-9
  )


def test_features_tend_to_the_kernel():
  x = np.random.default_rng(1).normal(size=(6, 4))
  phi = dd.random_fourier_features(x, 200_000, sigma=2.0)
  np.testing.assert_allclose(
    phi @ phi.T, dd.gaussian_kernel(x, x, sigma=2.0), atol=0.01
  )


def blobs(rng, n):
  y = rng.integers(0, 4, n)
  centres = np.random.default_rng(7).normal(size=(4, 20))
  return centres[y] + 1.2 * rng.normal(size=(n, 20)), y


def test_the_error_peaks_at_as_many_features_as_examples_and_the_norm_falls_after():
  rng = np.random.default_rng(2)
  train, test = blobs(rng, 80), blobs(rng, 500)
  fits = {}
  for width in (20, 80, 320, 1280, None):
    several = [dd.fit_features(train, test, width, sigma=5.0, seed=s) for s in range(5)]
    fits[width] = np.mean([(f.test_error, f.train_loss, f.norm) for f in several], 0)
  error = {width: f[0] for width, f in fits.items()}
  assert error[80] > 1.5 * max(error[20], error[1280])
  assert error[1280] <= error[20]
  assert abs(error[1280] - error[None]) < 3
  assert fits[20][1] > 1e-3
  assert several[0].wrong.shape == (500,)
  assert 100 * several[0].wrong.mean() == several[0].test_error
  for width in (80, 320, 1280):
    assert fits[width][1] < 1e-15
  assert fits[80][2] > fits[320][2] > fits[1280][2] > 0.9 * fits[None][2]


def test_bad_input_is_named():
  with pytest.raises(ValueError, match="features must be at least 1, got 0"):
    dd.random_fourier_features(np.ones((1, 1)), 0)
  with pytest.raises(ValueError, match="equally many rows"):
    dd.minimum_norm_fit(np.ones((2, 1)), np.ones((3, 1)))
