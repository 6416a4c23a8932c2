"""Mini-batch SGD on interpolated training sets, and the critical batch size.

For least squares with an exact solution, SGD contracts the expected squared distance to
it. The rate improves linearly with the batch size `m` up to `m*`, and hardly beyond.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core import check_integer, check_key


class Spectrum(NamedTuple):
  """The spectrum of a problem with inputs `(n, d)`, `H = mean_i x_i x_i^T`."""

  beta: float  # max_i |x_i|^2
  largest: float  # lambda_1 of H
  smallest: float  # lambda_k, the smallest eigenvalue above zero
  values: np.ndarray  # all eigenvalues above zero, descending


def spectrum(inputs: np.ndarray, tolerance: float = 1e-10) -> Spectrum:
  """Computes the norms and eigenvalues that determine the effect of the batch size.

  Args:
    inputs: float array `(n, d)`.
    tolerance: eigenvalues below this fraction of the largest count as zero.

  Returns:
    `Spectrum`.

  Example:
    >>> s = spectrum(np.array([[2.0, 0.0], [0.0, 1.0]]))
    >>> s.beta, s.largest, s.smallest
    (4.0, 2.0, 0.5)
  """
  inputs = np.asarray(inputs, np.float64)
  if inputs.ndim != 2 or not inputs.size:
    raise ValueError(f"inputs must be of shape (n, d), got {inputs.shape}.")
  singular = np.linalg.svd(inputs, compute_uv=False)
  values = singular**2 / len(inputs)
  values = values[values > tolerance * values[0]]
  beta = float((inputs**2).sum(1).max())
  return Spectrum(beta, float(values[0]), float(values[-1]), values)


def kernel_spectrum(kernel: np.ndarray, tolerance: float = 1e-10) -> Spectrum:
  """Computes the spectrum of a problem from its kernel matrix.

  `H` has the eigenvalues of the kernel matrix, divided by `n`.

  Args:
    kernel: float `(n, n)`, symmetric.
    tolerance: eigenvalues below this fraction of the largest count as zero.

  Returns:
    A `Spectrum`.

  Example:
    >>> kernel_spectrum(np.eye(4)).values.tolist()
    [0.25, 0.25, 0.25, 0.25]
  """
  shape = np.shape(kernel)
  if len(shape) != 2 or shape[0] != shape[1]:
    raise ValueError(f"kernel must be of shape (n, n), got {shape}.")
  values = np.linalg.eigvalsh(kernel)[::-1] / len(kernel)
  values = values[values > tolerance * values[0]]
  beta = float(np.diagonal(kernel).max())
  return Spectrum(beta, float(values[0]), float(values[-1]), values)


def critical_batch_size(s: Spectrum) -> float:
  """Computes the critical batch size.

  `m* = beta / (lambda_1 - lambda_k) + 1`

  Args:
    s: a spectrum, from `spectrum`.

  Returns:
    `m*`, in examples; infinite if all eigenvalues are equal.

  Example:
    >>> critical_batch_size(spectrum(np.array([[2.0, 0.0], [0.0, 1.0]])))
    3.6666...

  Reference: Ma, Bassily and Belkin, The power of interpolation (2018), Theorem 4.
  """
  gap = s.largest - s.smallest
  return s.beta / gap + 1 if gap > 0 else math.inf


def contraction(s: Spectrum, batch: float, step_size: float) -> float:
  """Bounds the factor by which one step of SGD changes `E |w - w*|^2`.

  `g(m, eta) = max_l [(1 - eta l)^2 + eta^2 l (beta - l) / m]`

  SGD converges if the factor is below 1.

  Args:
    s: a spectrum, from `spectrum`.
    batch: `m`, the batch size, at least 1.
    step_size: `eta`.

  Returns:
    The factor `g`.

  Raises:
    ValueError: `batch` is below 1.

  Example:
    >>> s = spectrum(np.array([[1.0]]))
    >>> contraction(s, 1, 1.0)
    0.0

  Reference: Ma, Bassily and Belkin (2018), Theorem 1.
  """
  if batch < 1:
    raise ValueError(f"batch must be at least 1, got {batch}.")
  bias = (1 - step_size * s.values) ** 2
  noise = step_size**2 * s.values * (s.beta - s.values) / batch
  return float(np.max(bias + noise))


def optimal_step_size(s: Spectrum, batch: float) -> float:
  """Computes the step size with the smallest contraction factor.

  `m <= m*`: `m / (beta + (m - 1) lambda_k)`; else
  `2 m / (beta + (m - 1) (lambda_1 + lambda_k))`.

  Args:
    s: a spectrum, from `spectrum`.
    batch: `m`, the batch size, at least 1.

  Returns:
    `eta*(m)`.

  Raises:
    ValueError: `batch` is below 1.

  Example:
    >>> optimal_step_size(spectrum(np.array([[1.0]])), 1)
    1.0

  Reference: Ma, Bassily and Belkin (2018), Theorem 2.
  """
  if batch < 1:
    raise ValueError(f"batch must be at least 1, got {batch}.")
  if batch <= critical_batch_size(s):
    return batch / (s.beta + (batch - 1) * s.smallest)
  return 2 * batch / (s.beta + (batch - 1) * (s.largest + s.smallest))


def optimal_contraction(s: Spectrum, batch: float) -> float:
  """Computes the contraction factor at the optimal step size, in closed form.

  `m <= m*`: `1 - m lambda_k / (beta + (m - 1) lambda_k)`; else
  `1 - 4 m (m - 1) lambda_1 lambda_k / (beta + (m - 1) (lambda_1 + lambda_k))^2`.

  Args:
    s: a spectrum, from `spectrum`.
    batch: `m`, the batch size, at least 1.

  Returns:
    `g*(m)`.

  Raises:
    ValueError: `batch` is below 1.

  Example:
    >>> s = spectrum(np.array([[2.0, 0.0], [0.0, 1.0]]))
    >>> a, b = optimal_contraction(s, 8), contraction(s, 8, optimal_step_size(s, 8))
    >>> abs(a - b) < 1e-12
    True

  Reference: Ma, Bassily and Belkin (2018), Theorem 2.
  """
  if batch < 1:
    raise ValueError(f"batch must be at least 1, got {batch}.")
  if batch <= critical_batch_size(s):
    return 1 - batch * s.smallest / (s.beta + (batch - 1) * s.smallest)
  ends = s.largest * s.smallest
  whole = s.beta + (batch - 1) * (s.largest + s.smallest)
  return 1 - 4 * batch * (batch - 1) * ends / whole**2


def iterations_bound(s: Spectrum, batch: float, accuracy: float) -> int:
  """Computes after how many steps at `eta*` the error is below a fraction of its start.

  The error is `E |w - w*|^2`.

  Args:
    s: a spectrum, from `spectrum`.
    batch: `m`, the batch size, at least 1.
    accuracy: the fraction of the initial error, in (0, 1).

  Returns:
    `ceil(ln(accuracy) / ln(g*))`.

  Raises:
    ValueError: `batch` is below 1, or `accuracy` is not in (0, 1).

  Example:
    >>> iterations_bound(spectrum(np.array([[2.0, 0.0], [0.0, 1.0]])), 1, 1e-6)
    104
  """
  if not 0 < accuracy < 1:
    raise ValueError(f"accuracy must be in (0, 1), got {accuracy}.")
  factor = optimal_contraction(s, batch)
  return math.ceil(math.log(accuracy) / math.log(factor)) if factor > 0 else 1


def simulate(
  inputs: jax.Array,
  batch: int,
  step_size: float,
  steps: int,
  key: jax.Array,
  *,
  runs: int = 20,
) -> jax.Array:
  """Runs SGD on `mean_i (x_i . d)^2 / 2` from a random unit vector `d`.

  `d <- d - eta mean_{i in batch} x_i (x_i . d)`, batches drawn with replacement.

  Here `d` is the difference between the weights and the solution.

  Args:
    inputs: float array `(n, d)`.
    batch: `m`, the batch size.
    step_size: `eta`.
    steps: the number of steps.
    key: a PRNG key.
    runs: the number of independent runs, which are vmapped.

  Returns:
    Float array `(runs, steps)`: `|d|^2` after each step.

  Raises:
    ValueError: `batch` is below 1.

  Example:
    >>> simulate(jnp.ones((1, 1)), 1, 0.5, 2, jax.random.key(0), runs=1).tolist()
    [[0.25, 0.0625]]
  """
  check_key("key", key)
  check_integer("batch", batch, 1)
  count, dimension = inputs.shape

  def step(distance, key):
    x = inputs[jax.random.randint(key, (batch,), 0, count)]
    distance = distance - step_size * (x.T @ (x @ distance)) / batch
    return distance, jnp.sum(distance**2)

  def run(key):
    start_key, key = jax.random.split(key)
    start = jax.random.normal(start_key, (dimension,), inputs.dtype)
    # Only components in the span of the rows can be learned, so start inside it.
    start = start if count >= dimension else inputs.T @ start[:count]
    start = start / jnp.linalg.norm(start)
    return jax.lax.scan(step, start, jax.random.split(key, steps))[1]

  return jax.vmap(run)(jax.random.split(key, runs))
