"""Comparisons of methods, densities and settings over seeds, and their reports."""

from sparsejax.experiments.comparison._grid import cells as grid_cells
from sparsejax.experiments.comparison._grid import collect as collect_cells
from sparsejax.experiments.comparison._grid import run_grid
from sparsejax.experiments.comparison._report import keep_rows
from sparsejax.experiments.comparison._report import table as comparison_table
from sparsejax.experiments.comparison._report import write as write_comparison
from sparsejax.experiments.comparison._sweep import (
  collect_sweep,
  parse_sweep,
  run_sweep,
  sweep_settings,
  sweep_table,
  write_sweep,
)

__all__ = [
  "run_grid",
  "write_comparison",
]
