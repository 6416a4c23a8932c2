"""Second-order pruning: OBD, OBS, layer-wise OBS, SparseGPT and WoodFisher."""

from sparsejax.second_order._compensation import compensate, damped, solve_live
from sparsejax.second_order._layerwise_obs import deletion_order, order_scores
from sparsejax.second_order._levenberg_marquardt import levenberg_marquardt
from sparsejax.second_order._mlp_obs import prepare as prepare_mlp_obs
from sparsejax.second_order._mlp_obs import prune as prune_mlp_obs
from sparsejax.second_order._mlp_obs import with_kernel
from sparsejax.second_order._obs import (
  downdate_inverse,
  live_inverse,
  obs_saliency,
  obs_update,
  optimal_brain_surgeon,
)
from sparsejax.second_order._prune_retrain import Rule as PruningRule
from sparsejax.second_order._prune_retrain import (
  keep_best,
  obd_rule,
  prune_retrain,
  score_rule,
  surgeon_rule,
)
from sparsejax.second_order._sparse_gpt import sparse_gpt
from sparsejax.second_order._woodfisher import block_inverse as woodfisher_inverse
from sparsejax.second_order._woodfisher import (
  woodfisher_compensate,
  woodfisher_saliency,
)

__all__ = [
  "compensate",
  "deletion_order",
  "downdate_inverse",
  "levenberg_marquardt",
  "live_inverse",
  "obd_rule",
  "obs_saliency",
  "obs_update",
  "optimal_brain_surgeon",
  "order_scores",
  "prepare_mlp_obs",
  "prune_mlp_obs",
  "prune_retrain",
  "score_rule",
  "sparse_gpt",
  "surgeon_rule",
  "woodfisher_compensate",
  "woodfisher_inverse",
  "woodfisher_saliency",
]
