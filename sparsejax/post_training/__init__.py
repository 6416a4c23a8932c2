"""Pruning of trained networks in one shot, and their fine-tuning by sparse deltas."""

from sparsejax.post_training._delta import fish_masks, spiel, with_delta
from sparsejax.post_training._methods import ria, wanda
from sparsejax.post_training._owl import owl
from sparsejax.post_training._prune import LayerReport, Pruned, prune
from sparsejax.post_training._statistics import (
  InputStatistics,
  LayerInfo,
  input_statistics,
  layers,
)

__all__ = [
  "InputStatistics",
  "LayerInfo",
  "LayerReport",
  "Pruned",
  "fish_masks",
  "input_statistics",
  "layers",
  "owl",
  "prune",
  "ria",
  "spiel",
  "wanda",
  "with_delta",
]
