"""Counts the cost of a network: multiply-adds and bytes."""

from sparsejax.analysis.costs._estimates import Estimates, estimated_speedups
from sparsejax.analysis.costs._multiply_adds import Cost, LayerCost, flops
from sparsejax.analysis.costs._multiply_adds import forward as forward_multiply_adds
from sparsejax.analysis.costs._multiply_adds import training as training_multiply_adds
from sparsejax.analysis.costs._multiply_adds import uses as kernel_uses
from sparsejax.analysis.costs._sizes import Sizes, sizes

__all__ = [
  "Cost",
  "Estimates",
  "LayerCost",
  "Sizes",
  "estimated_speedups",
  "flops",
  "sizes",
]
