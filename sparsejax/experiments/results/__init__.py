"""Results files: numbers that a script made, with everything that made them."""

from sparsejax.experiments.results._results import placed, row, with_held, write_results

__all__ = [
  "row",
  "write_results",
]
