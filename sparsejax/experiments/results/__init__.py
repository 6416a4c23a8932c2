"""Results files: numbers that a script made, with everything that made them."""

from sparsejax.experiments.results._results import (
  annotate_provenance,
  merge_with_existing,
  row,
  write_results,
)

__all__ = [
  "row",
  "write_results",
]
