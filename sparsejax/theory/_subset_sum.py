"""Approximation of a weight by a sum of random samples (Pensia et al.; Lueker)."""

import math

import numpy as np

_CHUNK_SUMS = 1 << 18  # sums computed at a time, so that they fit into the cache


def samples_needed(eps: float, delta: float) -> int:
  """Computes how many random samples a target needs.

  `n = ceil(1.2 log2(2 / min(eps, delta)))`

  The form is that of Lueker's theorem, which does not give the constant. 1.2 is
  measured: with `eps` one percent of the range and 24 samples, two targets in a million
  fail, and each further sample halves that number.

  Args:
    eps: the allowed error, in units of the samples' range.
    delta: the allowed probability of failure per target.

  Returns:
    The number of samples.

  Raises:
    ValueError: `eps` or `delta` is not in (0, 1).

  Example:
    >>> samples_needed(0.01, 0.05), samples_needed(0.01, 0.05 / 266_200)
    (10, 29)

  Reference: Pensia et al., Optimal lottery tickets via subset sum (2020), Theorem 2.
  """
  for name, value in (("eps", eps), ("delta", delta)):
    if not 0 < value < 1:
      raise ValueError(f"{name} must be in (0, 1), got {value}.")
  return math.ceil(1.2 * math.log2(2 / min(eps, delta)))


def subset_sum(samples: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """Finds the subset of each row's samples whose sum is nearest to the row's target.

  The algorithm meets in the middle: it computes all `2^(n/2)` sums of each half, sorts
  those of one half, and searches them for the target minus those of the other half. The
  result is exact up to the last `n / 2` bits of a double, which encode a sum's subset
  during the sort.

  Args:
    samples: float array `(rows, n)`, `n` from 2 to 40.
    targets: float array `(rows,)`.

  Returns:
    Bool array `(rows, n)`, True = in the subset.

  Raises:
    ValueError: shapes do not fit, or `n` is out of range.

  Example:
    >>> subset_sum(np.array([[1.0, 0.5, 0.2, -0.25]]), np.array([0.7])).tolist()
    [[False, True, True, False]]

  Reference: Pensia et al. (2020), section 4, solved there by integer programming;
  Horowitz and Sahni, Computing partitions with applications to the knapsack problem
  (1974).
  """
  samples = np.asarray(samples, np.float64)
  targets = np.asarray(targets, np.float64)
  if samples.ndim != 2 or targets.shape != samples.shape[:1]:
    raise ValueError(
      "samples and targets must have shapes (rows, n) and (rows,), got"
      f" {samples.shape} and {targets.shape}."
    )
  n = samples.shape[1]
  if not 2 <= n <= 40:
    raise ValueError(f"samples must have from 2 to 40 columns, got {n}.")
  rows = max(1, _CHUNK_SUMS >> (n - n // 2))
  masks = np.empty(samples.shape, bool)
  for start in range(0, len(targets), rows):
    part = slice(start, start + rows)
    masks[part] = _nearest(samples[part], targets[part])
  return masks


def _nearest(samples, targets):
  # Compute the sums of both halves, and sort those of the right half. The lowest bits
  # of each sum are replaced by the code of its subset, which the sort carries along.
  rows, n = samples.shape
  half = n // 2
  left, right = _all_sums(samples[:, :half]), _all_sums(samples[:, half:])
  codes = np.arange(right.shape[1], dtype=np.int64)[None]
  low_bits = np.int64((1 << (n - half)) - 1)
  tagged = np.sort(((right.view(np.int64) & ~low_bits) | codes).view(np.float64), 1)
  # Search all rows at once: an offset per row puts their sorted sums into one ascending
  # array, in which the target minus each left sum is searched.
  reach = 2 * (np.abs(samples).sum(1).max() + np.abs(targets).max()) + 1
  offset = np.arange(rows, dtype=np.float64)[:, None] * (2 * reach)
  wanted = targets[:, None] - left
  order = np.searchsorted((tagged + offset).ravel(), (wanted + offset).ravel())
  # The nearest right sum is the one above or below the position found, in the same row.
  first = np.arange(rows)[:, None] * right.shape[1]
  last = first + right.shape[1] - 1
  above = np.clip(order.reshape(left.shape), first, last)
  below = np.clip(above - 1, first, last)
  flat = tagged.ravel()
  error_above, error_below = np.abs(flat[above] - wanted), np.abs(flat[below] - wanted)
  best = np.argmin(np.minimum(error_above, error_below), axis=1)
  row = np.arange(rows)
  nearer = np.where(
    error_above[row, best] <= error_below[row, best], above[row, best], below[row, best]
  )
  # Decode the subsets: of the left half from its index, of the right from its low bits.
  code = flat[nearer].view(np.int64) & low_bits
  bits = np.concatenate(
    [
      (best[:, None] >> np.arange(half)[None]) & 1,
      (code[:, None] >> np.arange(n - half)[None]) & 1,
    ],
    axis=1,
  )
  return bits.astype(bool)


def _all_sums(samples):
  """Returns all subset sums, `(rows, 2^n)`; bit k of a column's index = sample k is in.

  The first bit is the lowest.
  """
  sums = np.zeros((len(samples), 1))
  for k in range(samples.shape[1]):
    sums = np.concatenate([sums, sums + samples[:, k : k + 1]], axis=1)
  return sums


def staged_subset_sum(
  samples: np.ndarray, targets: np.ndarray, eps: float, first: int = 16
) -> np.ndarray:
  """Finds subset sums within `eps`, with no more samples per row than needed.

  Like `subset_sum`, but rows whose error is above `eps` are solved again with more
  samples.

  Args:
    samples: float array `(rows, n)`.
    targets: float array `(rows,)`.
    eps: the allowed error.
    first: the number of samples used at first; it grows by four at a time.

  Returns:
    Bool array `(rows, n)`.

  Raises:
    ValueError: `eps` is not above 0.

  Example:
    >>> samples = np.array([[0.5, 1.0, 0.7]])
    >>> staged_subset_sum(samples, np.array([0.7]), 0.01, first=2).tolist()
    [[False, False, True]]
  """
  if eps <= 0:
    raise ValueError(f"eps must be above 0, got {eps}.")
  n = samples.shape[1]
  masks = np.zeros(samples.shape, bool)
  left = np.arange(len(targets))
  for count in [*range(min(first, n), n, 4), n]:
    masks[left, :count] = subset_sum(samples[left, :count], targets[left])
    error = np.abs((samples[left] * masks[left]).sum(1) - targets[left])
    left = left[error > eps]
    if not len(left):
      break
  return masks
