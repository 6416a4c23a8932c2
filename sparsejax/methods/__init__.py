"""Published sparse training methods, built from the parts in `sparsejax.transforms`."""

from sparsejax.methods._ac_dc import ac_dc, alternate
from sparsejax.methods._chts import chts
from sparsejax.methods._deep_r import deep_r
from sparsejax.methods._dense import dense
from sparsejax.methods._dsr import drop_below, dsr
from sparsejax.methods._global_magnitude import global_magnitude
from sparsejax.methods._global_saliency import global_saliency
from sparsejax.methods._gradual_magnitude import cubic, gradual_magnitude
from sparsejax.methods._granet import granet
from sparsejax.methods._isometric import isometric
from sparsejax.methods._mest import mest
from sparsejax.methods._movement_pruning import movement_pruning
from sparsejax.methods._one_shot import one_shot
from sparsejax.methods._rigl import rigl
from sparsejax.methods._snfs import snfs
from sparsejax.methods._sparse_evolution import sparse_evolution
from sparsejax.methods._sparse_momentum import near_dense, sparse_momentum
from sparsejax.methods._static_sparse import static_sparse
from sparsejax.methods.at_initialization import (
  grasp,
  ntk_sap,
  phew,
  prospr,
  snip,
  synflow,
)
from sparsejax.methods.forward import (
  continuous_sparsification,
  init_scores,
  init_thresholds,
  power_updates,
  powerpropagation,
  s_ste,
  soft_threshold,
  soft_threshold_masks,
  spartan,
  sr_ste,
  straight_through,
  supermask,
  supermask_masks,
  top_kast,
)

__all__ = [
  "ac_dc",
  "alternate",
  "chts",
  "continuous_sparsification",
  "cubic",
  "deep_r",
  "dense",
  "drop_below",
  "dsr",
  "global_magnitude",
  "global_saliency",
  "gradual_magnitude",
  "granet",
  "grasp",
  "init_scores",
  "init_thresholds",
  "isometric",
  "mest",
  "movement_pruning",
  "near_dense",
  "ntk_sap",
  "one_shot",
  "phew",
  "power_updates",
  "powerpropagation",
  "prospr",
  "rigl",
  "s_ste",
  "snfs",
  "snip",
  "soft_threshold",
  "soft_threshold_masks",
  "sparse_evolution",
  "sparse_momentum",
  "spartan",
  "sr_ste",
  "static_sparse",
  "straight_through",
  "supermask",
  "supermask_masks",
  "synflow",
  "top_kast",
]
