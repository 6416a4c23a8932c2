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
from sparsejax.transforms.rigl import rigl
from sparsejax.transforms.snip import snip
from sparsejax.transforms.sparse_evolution import sparse_evolution
from sparsejax.transforms.sparse_momentum import near_dense, sparse_momentum
from sparsejax.transforms.sparsify import sparsify
from sparsejax.transforms.static_sparse import static_sparse
from sparsejax.transforms.synflow import synflow

__all__ = [
  "chain",
  "cubic",
  "dense",
  "drop",
  "gradual_magnitude",
  "grasp",
  "grow",
  "masks_from_scores",
  "near_dense",
  "prune_to",
  "redistribute",
  "reinitialize",
  "rigl",
  "shuffle_masks",
  "snip",
  "sparse_evolution",
  "sparse_momentum",
  "sparsify",
  "static_sparse",
  "synflow",
]
