"""Deploys sparse networks: each product in its fastest format, saved as one file."""

from sparsejax.analysis.deployment._deploy import Deployed, Layer, deploy

__all__ = [
  "Deployed",
  "Layer",
  "deploy",
]
