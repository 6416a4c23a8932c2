"""Double descent of random Fourier features: minimum-norm least squares in float64.

With a growing number of features the test error falls, peaks where it equals the number
of examples, and falls again below its first minimum. The norm of the solution peaks and
falls too.
"""

from typing import NamedTuple

import numpy as np

from sparsejax.core import check_number


class Fit(NamedTuple):
  """The result of one least-squares fit."""

  test_error: float  # percent, by the largest output
  train_error: float  # percent
  train_loss: float  # mean squared error over examples and classes
  norm: float  # Euclidean norm of all coefficients
  wrong: np.ndarray  # bool, which test examples the test error counts


def random_fourier_features(
  x: np.ndarray, features: int, *, sigma: float = 5.0, seed: int = 0
) -> np.ndarray:
  """Computes random features whose inner products converge to a Gaussian kernel.

  `phi_k(x) = sqrt(2 / N) cos(v_k . x + b_k)`, `v_k ~ N(0, 1 / sigma^2)`,
  `b_k ~ U[0, 2 pi)`; `phi(x) . phi(y) -> exp(-|x - y|^2 / (2 sigma^2))`.

  Args:
    x: float array `(n, d)`.
    features: `N`, the number of features. Different numbers give different features,
      also for the same seed.
    sigma: the kernel's width, in the units of `x`.
    seed: the seed of the features.

  Returns:
    float64 `(n, N)`.

  Raises:
    ValueError: `features` is below 1, or `sigma` is not above 0.

  Example:
    >>> phi = random_fourier_features(np.zeros((1, 3)), 4000)
    >>> round(float(phi[0] @ phi[0]), 1)
    1.0

  Reference: Rahimi and Recht, Random features for large-scale kernel machines (2007).
  """
  if features < 1:
    raise ValueError(f"features must be at least 1, got {features}.")
  if sigma <= 0:
    raise ValueError(f"sigma must be above 0, got {sigma}.")
  rng = np.random.default_rng([seed, features])
  v = rng.normal(size=(x.shape[1], features)) / sigma
  b = rng.uniform(0, 2 * np.pi, features)
  return np.sqrt(2 / features) * np.cos(np.asarray(x, np.float64) @ v + b[None])


def minimum_norm_fit(design: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """Computes the least-squares solution of smallest norm by a QR decomposition.

  At least as many rows as columns: `A = Q R`, `R w = Q^T y`. Else `A^T = Q R`,
  `w = Q R^-T y`, which fits exactly.

  Normal equations would square the condition number, which causes the peak of the test
  error.

  Args:
    design: float array `(n, N)` of full rank.
    targets: float array `(n, classes)`.

  Returns:
    float64 `(N, classes)`.

  Raises:
    ValueError: the numbers of rows differ.

  Example:
    >>> minimum_norm_fit(np.array([[1.0, 1.0]]), np.array([[2.0]])).round(6).tolist()
    [[1.0], [1.0]]
  """
  if len(design) != len(targets):
    raise ValueError(
      "design and targets must have equally many rows, got"
      f" {len(design)} and {len(targets)}."
    )
  design = np.asarray(design, np.float64)
  targets = np.asarray(targets, np.float64)
  if design.shape[0] >= design.shape[1]:
    q, r = np.linalg.qr(design)
    return np.linalg.solve(r, q.T @ targets)
  q, r = np.linalg.qr(design.T)
  return q @ np.linalg.solve(r.T, targets)


def gaussian_kernel(x: np.ndarray, y: np.ndarray, *, sigma: float = 5.0) -> np.ndarray:
  """Computes the Gaussian kernel matrix of two sets of points.

  `exp(-|x_i - y_j|^2 / (2 sigma^2))`

  Args:
    x: float `(n, d)`.
    y: float `(m, d)`.
    sigma: the kernel's width, above 0.

  Returns:
    float64 `(n, m)`.

  Raises:
    ValueError: shapes do not fit, or `sigma` is not above 0.

  Example:
    >>> gaussian_kernel(np.zeros((1, 2)), np.array([[3.0, 4.0]])).round(4).tolist()
    [[0.6065]]
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
    raise ValueError(f"x and y must be (n, d) and (m, d), got {x.shape} and {y.shape}.")
  check_number("sigma", sigma, "be above 0", lambda v: 0 < v < np.inf)
  squares = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
  return np.exp(-np.maximum(squares, 0) / (2 * sigma**2))


def fit_features(
  train: tuple[np.ndarray, np.ndarray],
  test: tuple[np.ndarray, np.ndarray],
  features: int | None,
  *,
  sigma: float = 5.0,
  seed: int = 0,
) -> Fit:
  """Fits one-hot labels with random Fourier features, or with the Gaussian kernel.

  Args:
    train: training inputs `(n, d)` and integer labels `(n,)`.
    test: test inputs `(m, d)` and integer labels `(m,)`.
    features: `N`, the number of features, or None for the Gaussian kernel, their limit.
    sigma: the kernel's width.
    seed: the seed of the features.

  Returns:
    `Fit`. The norm is that of the coefficients of `sqrt(2 / N) cos(...)`, or, for the
    kernel, the norm in its reproducing kernel Hilbert space.

  Raises:
    ValueError: `features` is below 1, or `sigma` is not above 0.

  Example:
    >>> x, y = np.eye(4), np.arange(4)
    >>> fit_features((x, y), (x, y), 50).test_error
    0.0

  Reference: Belkin, Hsu, Ma and Mandal, Reconciling modern machine learning practice
  and the bias-variance trade-off (2019), Figure 2.
  """
  x, y = train
  one_hot = (y[:, None] == np.arange(int(max(y.max(), test[1].max())) + 1)).astype(
    float
  )
  if features is None:
    design = gaussian_kernel(x, x, sigma=sigma)
    test_design = gaussian_kernel(test[0], x, sigma=sigma)
    coefficients = np.linalg.solve(design, one_hot)
    norm = np.sqrt(np.sum(coefficients * (design @ coefficients)))
  else:
    everything = np.concatenate([x, test[0]])
    both = random_fourier_features(everything, features, sigma=sigma, seed=seed)
    design, test_design = both[: len(x)], both[len(x) :]
    coefficients = minimum_norm_fit(design, one_hot)
    norm = np.linalg.norm(coefficients)
  outputs, test_outputs = design @ coefficients, test_design @ coefficients
  wrong = test_outputs.argmax(1) != test[1]
  return Fit(
    test_error=100 * float(np.mean(wrong)),
    train_error=100 * float(np.mean(outputs.argmax(1) != y)),
    train_loss=float(np.mean((outputs - one_hot) ** 2)),
    norm=float(norm),
    wrong=wrong,
  )
