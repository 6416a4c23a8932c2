"""Removes the dead units of a traced function."""

from sparsejax.analysis.compaction._compact import Compact, compact, live_parameters

__all__ = [
  "Compact",
  "compact",
  "live_parameters",
]
