"""Approximation of a weight by an expansion in powers of the golden ratio.

Samples are log-uniform ("hyperbolic"): each interval `(phi^-(i+1), phi^-i]`, `i =
1..k`, is equally likely. Given one sample per interval, taking each sample that is not
above the residual leaves between 0 and `phi^-k` of a target in [0, 1] (Orseau et al.).

Such errors are one-sided: every weight shrinks, by 0.34 phi^-k on average, and over the
inputs of a layer the errors add up. Here the expansion is that of `|target| + 0.34
phi^-k`, so that the mean error is zero.
"""

import math

import numpy as np

PHI = (1 + math.sqrt(5)) / 2
# The mean residual of an expansion in units of phi^-k; it hardly depends on the target.
MEAN_RESIDUAL = 0.34


def intervals_needed(eps: float) -> int:
  """Computes the number of intervals, `k = ceil(log_phi(1 / eps))`: `phi^-k <= eps`.

  Example:
    >>> [intervals_needed(eps) for eps in (1e-1, 1e-2, 1e-3)]
    [5, 10, 15]
  """
  if not 0 < eps < 1:
    raise ValueError(f"eps must be in (0, 1), got {eps}.")
  return math.ceil(math.log(1 / eps, PHI))


def samples_needed(eps: float, delta: float, *, signed: bool = False) -> int:
  """Computes how many samples hit all `k` intervals with probability `1 - delta`.

  `n = ceil(k ln(k / delta))`; twice as many if the samples' signs are random too.

  Args:
    eps: the allowed error, in units of the targets' range.
    delta: the allowed probability of failure per target.
    signed: whether samples have random signs, so that only those with the target's sign
      can be used.

  Returns:
    The number of samples.

  Raises:
    ValueError: `eps` or `delta` is not in (0, 1).

  Example:
    >>> [samples_needed(eps, 0.05) for eps in (1e-1, 1e-2, 1e-3)]
    [24, 53, 86]

  Reference: Orseau, Hutter and Rivasplata, Logarithmic pruning is all you need (2020),
  Lemma 3 (golden-ratio decomposition), with the union bound written out.
  """
  if not 0 < delta < 1:
    raise ValueError(f"delta must be in (0, 1), got {delta}.")
  k = intervals_needed(eps)
  return math.ceil((2 if signed else 1) * k * math.log(k / delta))


def golden_ratio(samples: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
  """Selects the samples of each row's golden-ratio expansion.

  The magnitude that is expanded is `min(|target| + 0.34 phi^-k, 1)`.

  Args:
    samples: float array `(rows, n)`, magnitudes in `(phi^-(k+1), phi^-1]`, any signs.
    targets: float array `(rows,)`, in [-1, 1].
    k: the number of intervals; in each, only the first sample with the target's sign is
      considered.

  Returns:
    Bool array `(rows, n)`. In rows with a sample in every interval, the error is at
    most `phi^-k`, and 0.66 of it up to `|target| = 1 - 0.34 phi^-k`.

  Raises:
    ValueError: `k` is below 1.

  Example:
    >>> golden_ratio(np.array([[0.6, -0.5, 0.3]]), np.array([0.95]), 2).tolist()
    [[True, False, True]]

  Reference: Orseau, Hutter and Rivasplata (2020), Lemma 3, with the magnitude shifted.
  """
  if k < 1:
    raise ValueError(f"k must be at least 1, got {k}.")
  # The interval of each sample; 0 for samples of the wrong sign.
  masks = np.zeros(samples.shape, bool)
  interval = np.floor(-np.log(np.abs(samples)) / math.log(PHI) + 1e-12).astype(np.int8)
  interval[np.sign(samples) != np.where(targets < 0, -1.0, 1.0)[:, None]] = 0
  # From the interval of the largest samples on, take a sample if the residual is not
  # below it. The residual ends in [0, phi^-k]; the shift is its mean.
  residual = np.minimum(np.abs(targets).astype(np.float64) + MEAN_RESIDUAL * PHI**-k, 1)
  row = np.arange(len(targets))
  for i in range(1, k + 1):
    hits = interval == i
    column = np.argmax(hits, axis=1)
    value = np.abs(samples[row, column])
    taken = hits[row, column] & (value <= residual)
    masks[row[taken], column[taken]] = True
    residual = np.where(taken, residual - value, residual)
  return masks
