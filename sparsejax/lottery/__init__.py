"""Lottery tickets, second-order pruning and strong tickets."""

from sparsejax.lottery.compensation import compensate
from sparsejax.lottery.layerwise_obs import deletion_order, order_scores
from sparsejax.lottery.levenberg_marquardt import (
  levenberg_marquardt,
)
from sparsejax.lottery.mlp_obs import prepare as prepare_mlp_obs
from sparsejax.lottery.mlp_obs import prune as prune_mlp_obs
from sparsejax.lottery.obs import (
  downdate_inverse,
  live_inverse,
  obs_saliency,
  obs_update,
  optimal_brain_surgeon,
)
from sparsejax.lottery.second_order import (
  obd_rule,
  prune_retrain,
  score_rule,
  surgeon_rule,
)
from sparsejax.lottery.sparse_gpt import sparse_gpt
from sparsejax.lottery.strong import StrongTicket, approximate
from sparsejax.lottery.strong_network import run_effective, run_network
from sparsejax.lottery.woodfisher import block_inverse as woodfisher_inverse
from sparsejax.lottery.woodfisher import woodfisher_compensate, woodfisher_saliency

__all__ = [
  "StrongTicket",
  "approximate",
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
  "run_effective",
  "run_network",
  "score_rule",
  "sparse_gpt",
  "surgeon_rule",
  "woodfisher_compensate",
  "woodfisher_inverse",
  "woodfisher_saliency",
]
