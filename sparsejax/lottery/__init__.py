"""Lottery tickets: pruning, rewinding, controls, instability and populations."""

from sparsejax.lottery._criteria import CRITERIA, criterion
from sparsejax.lottery._freeze import freeze_masked
from sparsejax.lottery._instability import error_on_line, instability, interpolate
from sparsejax.lottery._member import Member, Population
from sparsejax.lottery._population import stack_members, train_population
from sparsejax.lottery._prune import dense_masks, keep_rate, ladder, layer_rates, prune
from sparsejax.lottery._rewind import (
  MASK_ONE,
  MASK_ZERO,
  mask_one,
  mask_zero,
  random_masks,
  rewind,
)

__all__ = [
  "CRITERIA",
  "MASK_ONE",
  "MASK_ZERO",
  "Member",
  "Population",
  "criterion",
  "dense_masks",
  "error_on_line",
  "freeze_masked",
  "instability",
  "interpolate",
  "keep_rate",
  "ladder",
  "layer_rates",
  "mask_one",
  "mask_zero",
  "prune",
  "random_masks",
  "rewind",
  "stack_members",
  "train_population",
]
