"""Deploys sparse networks: each product in its fastest format, saved as one file."""

from sparsejax.analysis.deployment._deploy import Deployed, LayerFormat, deploy
from sparsejax.analysis.deployment._latency import Latency, latency

__all__ = [
  "Deployed",
  "Latency",
  "LayerFormat",
  "deploy",
  "latency",
]
