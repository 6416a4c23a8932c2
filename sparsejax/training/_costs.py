"""What a run cost, estimated from the live weights that its records tell."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsejax.analysis.costs import forward_multiply_adds, training_multiply_adds
from sparsejax.training._methods import METHODS


def history(records: Sequence[Any], index: int = 0) -> list[dict[str, int]]:
  """Returns the live weights of each layer at every evaluation.

  Args:
    records: of `metrics.read`.
    index: which of the run's seeds.

  Returns:
    One dict an evaluation, the first before the first step.
  """
  return [
    {name: int(np.atleast_1d(count)[index]) for name, count in record["live"].items()}
    for record in records
    if "live" in record
  ]


def estimate(
  history: Sequence[dict[str, int]],
  uses: Mapping[str, int],
  sizes: Mapping[str, int],
  method: str,
) -> tuple[float, float]:
  """Estimates the multiply-adds of a run, over those of a dense one.

  Args:
    history: of `history`.
    uses: of `multiply_adds.uses`.
    sizes: weights of each layer.
    method: a name of `METHODS`.

  Returns:
    Of the final network's forward pass, and of the whole run.
  """
  dense = {name: sizes[name] for name in history[0]}
  gradients = METHODS[method].dense_gradients
  cost = np.mean(
    [training_multiply_adds(uses, n, dense, gradients) for n in history[:-1] or history]
  )
  whole = forward_multiply_adds(uses, dense)
  return forward_multiply_adds(uses, history[-1]) / whole, float(cost) / (3 * whole)
