"""One-shot pruning of trained networks, from statistics of each layer's inputs."""

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
  "input_statistics",
  "layers",
  "owl",
  "prune",
  "ria",
  "wanda",
]
