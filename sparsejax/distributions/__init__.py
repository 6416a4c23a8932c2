"""Distributions: functions that divide the total budget over the layers."""

from sparsejax.distributions._override import override
from sparsejax.distributions._schedule import EndingSchedule
from sparsejax.distributions._static import (
  check_density,
  check_distribution,
  erdos_renyi,
  erk,
  layer_budgets,
  sizes_of,
  total_budget,
  uniform,
)

__all__ = [
  "erdos_renyi",
  "erk",
  "override",
  "uniform",
]
