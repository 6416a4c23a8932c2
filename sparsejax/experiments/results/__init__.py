"""Results files: numbers computed by a script, together with their provenance."""

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
