"""Pruning of trained networks: what enters each layer, and which weights can go."""

from sparsejax.post_training._statistics import (
  InputStatistics,
  LayerInfo,
  input_statistics,
  layers,
)

__all__ = ["InputStatistics", "LayerInfo", "input_statistics", "layers"]
