"""Mask transforms, `sparsify`, and the methods: one-line choices of the four parts."""

from sparsejax.transforms.chain import chain
from sparsejax.transforms.dense import dense
from sparsejax.transforms.drop import drop
from sparsejax.transforms.gradual_magnitude import cubic, gradual_magnitude
from sparsejax.transforms.grow import grow
from sparsejax.transforms.prune_to import prune_to
from sparsejax.transforms.redistribute import redistribute
from sparsejax.transforms.rigl import rigl
from sparsejax.transforms.sparse_evolution import sparse_evolution
from sparsejax.transforms.sparse_momentum import near_dense, sparse_momentum
from sparsejax.transforms.sparsify import sparsify
from sparsejax.transforms.static_sparse import static_sparse

__all__ = [
  "chain",
  "cubic",
  "dense",
  "drop",
  "gradual_magnitude",
  "grow",
  "near_dense",
  "prune_to",
  "redistribute",
  "rigl",
  "sparse_evolution",
  "sparse_momentum",
  "sparsify",
  "static_sparse",
]
