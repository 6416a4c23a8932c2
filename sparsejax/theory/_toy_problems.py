"""Small problems whose patterns are all known: XOR and the three MONK's problems."""

import itertools
from typing import NamedTuple

import numpy as np

_VALUES = (3, 3, 2, 3, 4, 2)  # values per attribute of MONK's; 17 one-hot inputs
_TRAIN_ROWS = {1: 124, 2: 169, 3: 122}
_NOISY_ROWS = {1: 0, 2: 0, 3: 6}


class Problem(NamedTuple):
  """A problem: its training rows, and all patterns with their true labels."""

  train_inputs: np.ndarray  # (n, d) float64
  train_labels: np.ndarray  # (n,) bool
  inputs: np.ndarray  # (patterns, d) float64
  labels: np.ndarray  # (patterns,) bool


def xor() -> Problem:
  """Returns the four patterns of exclusive or, all of which are training rows.

  Example:
    >>> xor().labels.tolist()
    [False, True, True, False]
  """
  inputs = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float64)
  labels = np.array([False, True, True, False])
  return Problem(inputs, labels, inputs, labels)


def monk(problem: int, seed: int = 0) -> Problem:
  """Returns one of the MONK's problems, with 17 one-hot inputs and 432 patterns.

  1: `a1 = a2 or a5 = 1`. 2: exactly two attributes have their first value.
  3: `(a5 = 3 and a4 = 1) or (a5 != 4 and a2 != 3)`, 6 training labels flipped.

  The training rows (124, 169 and 122) are drawn here without replacement, because the
  published draws cannot be regenerated.

  Args:
    problem: 1, 2 or 3.
    seed: the seed of the draw.

  Returns:
    `Problem`. All patterns, with labels without noise, are the published test set.

  Raises:
    ValueError: `problem` is not 1, 2 or 3.

  Example:
    >>> [int(monk(k).labels.sum()) for k in (1, 2, 3)]
    [216, 142, 228]

  Reference: Thrun et al., The MONK's problems (1991), section 1.
  """
  if problem not in _TRAIN_ROWS:
    raise ValueError(f"problem must be 1, 2 or 3, got {problem!r}.")
  a = np.array(list(itertools.product(*(range(1, v + 1) for v in _VALUES))))
  if problem == 1:
    labels = (a[:, 0] == a[:, 1]) | (a[:, 4] == 1)
  elif problem == 2:
    labels = np.sum(a == 1, axis=1) == 2
  else:
    labels = ((a[:, 4] == 3) & (a[:, 3] == 1)) | ((a[:, 4] != 4) & (a[:, 1] != 3))
  inputs = np.concatenate(
    [a[:, [i]] == np.arange(1, v + 1)[None] for i, v in enumerate(_VALUES)], axis=1
  ).astype(np.float64)
  rng = np.random.default_rng([problem, seed])
  rows = rng.choice(len(a), _TRAIN_ROWS[problem], replace=False)
  train_labels = labels[rows].copy()
  noisy = rng.choice(len(rows), _NOISY_ROWS[problem], replace=False)
  train_labels[noisy] = ~train_labels[noisy]
  return Problem(inputs[rows], train_labels, inputs, labels)
