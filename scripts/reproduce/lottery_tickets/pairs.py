"""Comparisons of tickets with other networks, seed by seed."""

import numpy as np

from sparsejax.experiments.lottery import Outcome


def gains(ticket: Outcome, other: Outcome, control: bool) -> dict[str, np.ndarray]:
  """Returns differences and ratios of a ticket and another network, one per seed."""
  n = min(len(ticket.accuracy), len(other.accuracy))
  ratio = lambda a, b: np.asarray(a.early_stop[:n]) / np.asarray(b.early_stop[:n])
  found = {
    "accuracy_gain_points": ticket.accuracy[:n] - other.accuracy[:n],
    "last_accuracy_gain_points": ticket.final_accuracy[:n] - other.final_accuracy[:n],
  }
  if control:
    found["early_stop_speedup"] = ratio(other, ticket)
  else:
    found["early_stop_reduction_percent"] = 100 * (1 - ratio(ticket, other))
  return found
