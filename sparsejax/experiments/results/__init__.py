"""Results files: numbers computed by a script, together with their provenance."""

from sparsejax.experiments.results._results import (
  RUN_KEYS,
  merge_with_existing,
  read_rows,
  row,
  trained_in,
  write_results,
)

__all__ = [
  "read_rows",
  "row",
  "trained_in",
  "write_results",
]
