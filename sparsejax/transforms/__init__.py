"""Mask transforms, `sparsify`, and the methods: one-line choices of the four parts."""

from sparsejax.transforms.at_initialization import masks_from_scores
from sparsejax.transforms.chain import chain
from sparsejax.transforms.controls import reinitialize, shuffle_masks
from sparsejax.transforms.dense import dense
from sparsejax.transforms.drop import drop
from sparsejax.transforms.gradual_magnitude import cubic, gradual_magnitude
from sparsejax.transforms.grasp import grasp
from sparsejax.transforms.grow import grow
from sparsejax.transforms.prune_to import prune_to
from sparsejax.transforms.redistribute import redistribute
from sparsejax.transforms.reselect import reselect
from sparsejax.transforms.rigl import rigl
from sparsejax.transforms.snip import snip
from sparsejax.transforms.soft_threshold import (
  init_thresholds,
  soft_threshold,
  soft_threshold_masks,
)
from sparsejax.transforms.sparse_evolution import sparse_evolution
from sparsejax.transforms.sparse_momentum import near_dense, sparse_momentum
from sparsejax.transforms.sparsify import sparsify
from sparsejax.transforms.sparsify_forward import effective, sparsify_forward
from sparsejax.transforms.sr_ste import sr_ste
from sparsejax.transforms.static_sparse import static_sparse
from sparsejax.transforms.straight_through import straight_through
from sparsejax.transforms.supermask import init_scores, supermask, supermask_masks
from sparsejax.transforms.synflow import synflow
from sparsejax.transforms.top_kast import top_kast

__all__ = [
  "chain",
  "cubic",
  "dense",
  "drop",
  "effective",
  "gradual_magnitude",
  "grasp",
  "grow",
  "init_scores",
  "init_thresholds",
  "masks_from_scores",
  "near_dense",
  "prune_to",
  "redistribute",
  "reinitialize",
  "reselect",
  "rigl",
  "shuffle_masks",
  "snip",
  "soft_threshold",
  "soft_threshold_masks",
  "sparse_evolution",
  "sparse_momentum",
  "sparsify",
  "sparsify_forward",
  "sr_ste",
  "static_sparse",
  "straight_through",
  "supermask",
  "supermask_masks",
  "synflow",
  "top_kast",
]
