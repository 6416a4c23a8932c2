"""Class specialization: whether a channel responds to one class or to many."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Effect(NamedTuple):
  """One row of an analysis of variance."""

  sum_of_squares: float
  degrees: int  # of freedom
  f: float
  p: float
  eta_squared: float  # its part of the total sum of squares


def class_contributions(
  activations: np.ndarray, labels: np.ndarray, num_classes: int
) -> np.ndarray:
  """Sums the absolute activations of a layer by channel and class.

  A[c, k] = sum over examples of class k and positions of |a_c|

  Args:
    activations: float array (n, ..., channels). The results of several batches can be
      added.
    labels: int array (n,), in [0, num_classes).
    num_classes: number of classes.

  Returns:
    float64 (channels, num_classes).

  Raises:
    ValueError: the numbers of labels and examples differ.

  Example:
    >>> class_contributions(np.array([[1.0, 2.0], [-3.0, 0.0]]), np.array([0, 1]), 2)
    array([[1., 3.], [2., 0.]])
  """
  if len(activations) != len(labels):
    raise ValueError(
      "labels must be one an example, got "
      f"{len(labels)} for {len(activations)} examples."
    )
  a = np.abs(np.asarray(activations, np.float64))
  a = a.reshape(len(a), -1, a.shape[-1]).sum(1)
  return a.T @ np.eye(num_classes)[np.asarray(labels)]


def class_specialization(
  contributions: np.ndarray, ignored: float = 0.05
) -> np.ndarray:
  """Computes the largest share of a channel's activation that belongs to one class.

  s_c = max_k A[c, k] / sum_k A[c, k]

  The value is 1 / classes for a channel that responds to all classes alike, and 1 for a
  channel that responds to a single class.

  Args:
    contributions: (channels, classes), from `class_contributions`.
    ignored: fraction of the layer's total activation. The least active channels, up to
      this sum, are left out, because their shares are noise.

  Returns:
    float64 (remaining channels,), in the order of channels.

  Raises:
    ValueError: `ignored` is not in [0, 1).

  Example:
    >>> class_specialization(np.array([[1.0, 3.0], [2.0, 2.0], [0.1, 0.0]]))
    array([0.75, 0.5 ])

  Reference: Dettmers and Zettlemoyer (2019), section 5; as in their program.
  """
  if not 0 <= ignored < 1:
    raise ValueError(f"ignored must be in [0, 1), got {ignored}.")
  totals = contributions.sum(1)
  order = np.argsort(totals, kind="stable")
  below = np.cumsum(totals[order]) <= ignored * totals.sum()
  counted = np.sort(order[~below])
  counted = counted[totals[counted] > 0]
  return contributions[counted].max(1) / totals[counted]


def specialization_anova(
  dense: Mapping[str, np.ndarray], sparse: Mapping[str, np.ndarray]
) -> dict[str, Effect]:
  """Computes the analysis of variance of specialization: layer x (dense or sparse).

  Sums of squares are of type II, by least squares on unequal numbers of channels: each
  main effect is what it adds to the other main effect, and the interaction is what it
  adds to both.

  Args:
    dense: `{layer: values of class_specialization}`.
    sparse: the same layers of the sparse network.

  Returns:
    `{"layer": Effect, "sparse": ..., "layer:sparse": ..., "residual": ...}`; f and p of
    the residual are NaN.

  Raises:
    ValueError: the layers differ, or there are fewer than two, or no residual degrees
      of freedom are left.

  Example:
    >>> rng = np.random.default_rng(0)
    >>> dense = {layer: rng.normal(0.5, 0.1, 50) for layer in "ab"}
    >>> sparse = {layer: values - 0.2 for layer, values in dense.items()}
    >>> table = specialization_anova(dense, sparse)
    >>> table["sparse"].p < 1e-9, table["layer:sparse"].p > 0.9
    (True, True)
  """
  if list(dense) != list(sparse) or len(dense) < 2:
    raise ValueError(
      "dense and sparse must have the same two or more layers, got "
      f"{list(dense)} and {list(sparse)}."
    )
  # One row per channel, with its layer and whether the network is sparse; then one-hot
  # columns for the layers but the first, and their products with the sparse flag.
  rows = [
    (i, flag, value)
    for flag, net in enumerate((dense, sparse))
    for i, values in enumerate(net.values())
    for value in values
  ]
  layer, flag, y = (np.asarray(column) for column in zip(*rows, strict=True))
  levels = np.eye(len(dense))[layer.astype(int)][:, 1:]
  one, which = np.ones((len(y), 1)), flag[:, None]
  both = levels * which
  # Fit nested models: both main effects, then the interaction too.
  residual = lambda *parts: _residual(np.concatenate([one, *parts], 1), y)
  main = residual(levels, which)
  left = residual(levels, which, both)
  free = len(y) - 2 * len(dense)
  if free <= 0:
    raise ValueError(f"there must be more channels than cells, got {len(y)}.")
  total = float(np.sum((y - y.mean()) ** 2))
  # Each effect's sum of squares is the residual that it removes.
  sums = {
    "layer": (residual(which) - main, len(dense) - 1),
    "sparse": (residual(levels) - main, 1),
    "layer:sparse": (main - left, len(dense) - 1),
  }
  table = {}
  for name, (square, degrees) in sums.items():
    f = square / degrees / (left / free)
    from scipy import stats  # takes long to import

    p = float(stats.f.sf(f, degrees, free))
    table[name] = Effect(square, degrees, f, p, square / total)
  table["residual"] = Effect(left, free, np.nan, np.nan, left / total)
  return table


def _residual(design: np.ndarray, y: np.ndarray) -> float:
  fit = np.linalg.lstsq(design, y, rcond=None)[0]
  return float(np.sum((y - design @ fit) ** 2))
