"""Approximation of a weight by the nearest of many random samples (Malach et al.)."""

import math

import numpy as np


def samples_needed(eps: float, delta: float) -> int:
  """Computes how many samples hit a window with probability at least `1 - delta`.

  `n = ceil(ln(1 / delta) / eps)`, for samples uniform on [-1, 1].

  The window has the half-width `eps`.

  Args:
    eps: the allowed error; the samples' range is [-1, 1].
    delta: the allowed probability of failure per target.

  Returns:
    The number of samples.

  Raises:
    ValueError: `eps` or `delta` is not in (0, 1).

  Example:
    >>> [samples_needed(eps, 0.05) for eps in (1e-1, 1e-2, 1e-3)]
    [30, 300, 2996]

  Reference: Malach et al., Proving the lottery ticket hypothesis (2020), Lemma A.2.
  """
  for name, value in (("eps", eps), ("delta", delta)):
    if not 0 < value < 1:
      raise ValueError(f"{name} must be in (0, 1), got {value}.")
  return math.ceil(math.log(1 / delta) / eps)


def pick_one(samples: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """Selects the sample nearest to each row's target.

  Args:
    samples: float array `(rows, n)`.
    targets: float array `(rows,)`.

  Returns:
    Bool array `(rows, n)` with one True per row.

  Example:
    >>> pick_one(np.array([[0.1, -0.4, 0.7]]), np.array([0.6])).tolist()
    [[False, False, True]]

  Reference: Malach et al. (2020), Lemma A.2.
  """
  masks = np.zeros(samples.shape, bool)
  nearest = np.argmin(np.abs(samples - targets[:, None]), axis=1)
  masks[np.arange(len(targets)), nearest] = True
  return masks
