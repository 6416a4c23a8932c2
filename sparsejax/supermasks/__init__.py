"""Masks over untrained weights: edge-popup, Bernoulli masks, and their files."""

from sparsejax.supermasks._bernoulli import bernoulli_masks, bernoulli_supermask
from sparsejax.supermasks._edge_popup import (
  SupermaskState,
  edge_popup,
  rescaled_effective,
)
from sparsejax.supermasks._files import (
  Supermask,
  load_supermask,
  save_supermask,
  weights_hash,
)

__all__ = [
  "Supermask",
  "SupermaskState",
  "bernoulli_masks",
  "bernoulli_supermask",
  "edge_popup",
  "load_supermask",
  "rescaled_effective",
  "save_supermask",
  "weights_hash",
]
