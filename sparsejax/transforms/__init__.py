"""Mask transforms, `sparsify`, and the methods: one-line choices of the four parts."""

from sparsejax.transforms.ac_dc import ac_dc, alternate
from sparsejax.transforms.accumulate import accumulate
from sparsejax.transforms.at_initialization import masks_from_scores
from sparsejax.transforms.by_path import by_path
from sparsejax.transforms.chain import chain
from sparsejax.transforms.check_sparse import check_sparse
from sparsejax.transforms.controls import reinitialize, shuffle_masks
from sparsejax.transforms.deep_r import deep_r
from sparsejax.transforms.dense import dense
from sparsejax.transforms.drop import drop
from sparsejax.transforms.dsr import drop_below, dsr
from sparsejax.transforms.exploration import exploration_rate, track_exploration
from sparsejax.transforms.global_magnitude import global_magnitude
from sparsejax.transforms.global_saliency import global_saliency
from sparsejax.transforms.gradual_magnitude import cubic, gradual_magnitude
from sparsejax.transforms.grasp import grasp
from sparsejax.transforms.grow import grow
from sparsejax.transforms.grow_per_neuron import grow_per_neuron
from sparsejax.transforms.init import init
from sparsejax.transforms.initialize_grown import initialize_grown
from sparsejax.transforms.isometric import isometric
from sparsejax.transforms.keep import keep
from sparsejax.transforms.movement_pruning import movement_pruning
from sparsejax.transforms.one_shot import one_shot
from sparsejax.transforms.packed_masks import packed_masks
from sparsejax.transforms.prune_to import prune_to
from sparsejax.transforms.redistribute import redistribute
from sparsejax.transforms.reselect import reselect
from sparsejax.transforms.rigl import rigl
from sparsejax.transforms.shares import nonzeros, survivors
from sparsejax.transforms.snfs import snfs
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
  "ac_dc",
  "accumulate",
  "alternate",
  "by_path",
  "chain",
  "check_sparse",
  "cubic",
  "deep_r",
  "dense",
  "drop",
  "drop_below",
  "dsr",
  "effective",
  "exploration_rate",
  "global_magnitude",
  "global_saliency",
  "gradual_magnitude",
  "grasp",
  "grow",
  "grow_per_neuron",
  "init",
  "init_scores",
  "init_thresholds",
  "initialize_grown",
  "isometric",
  "keep",
  "masks_from_scores",
  "movement_pruning",
  "near_dense",
  "nonzeros",
  "one_shot",
  "packed_masks",
  "prune_to",
  "redistribute",
  "reinitialize",
  "reselect",
  "rigl",
  "shuffle_masks",
  "snfs",
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
  "survivors",
  "synflow",
  "top_kast",
  "track_exploration",
]
