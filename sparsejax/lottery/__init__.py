"""Lottery tickets, second-order pruning and strong tickets."""

from sparsejax.lottery.compensation import compensate
from sparsejax.lottery.criteria import CRITERIA, criterion
from sparsejax.lottery.freeze import freeze_masked
from sparsejax.lottery.instability import error_on_line, instability, interpolate
from sparsejax.lottery.layerwise_obs import deletion_order, order_scores
from sparsejax.lottery.levenberg_marquardt import (
  levenberg_marquardt,
)
from sparsejax.lottery.member import Member, Population
from sparsejax.lottery.mlp_obs import prepare as prepare_mlp_obs
from sparsejax.lottery.mlp_obs import prune as prune_mlp_obs
from sparsejax.lottery.obs import (
  downdate_inverse,
  live_inverse,
  obs_saliency,
  obs_update,
  optimal_brain_surgeon,
)
from sparsejax.lottery.population import stack_members, train_population
from sparsejax.lottery.prune import (
  dense_masks,
  keep_rate,
  ladder,
  layer_rates,
  prune,
)
from sparsejax.lottery.rewind import (
  MASK_ONE,
  MASK_ZERO,
  mask_one,
  mask_zero,
  random_masks,
  rewind,
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
from sparsejax.lottery.supermask import (
  SupermaskState,
  edge_popup,
  rescaled_effective,
)
from sparsejax.lottery.supermask_bernoulli import bernoulli_masks, bernoulli_supermask
from sparsejax.lottery.supermask_files import (
  Supermask,
  load_supermask,
  save_supermask,
  weights_hash,
)
from sparsejax.lottery.woodfisher import block_inverse as woodfisher_inverse
from sparsejax.lottery.woodfisher import woodfisher_compensate, woodfisher_saliency

__all__ = [
  "CRITERIA",
  "MASK_ONE",
  "MASK_ZERO",
  "Member",
  "Population",
  "StrongTicket",
  "Supermask",
  "SupermaskState",
  "approximate",
  "bernoulli_masks",
  "bernoulli_supermask",
  "compensate",
  "criterion",
  "deletion_order",
  "dense_masks",
  "downdate_inverse",
  "edge_popup",
  "error_on_line",
  "freeze_masked",
  "instability",
  "interpolate",
  "keep_rate",
  "ladder",
  "layer_rates",
  "levenberg_marquardt",
  "live_inverse",
  "load_supermask",
  "mask_one",
  "mask_zero",
  "obd_rule",
  "obs_saliency",
  "obs_update",
  "optimal_brain_surgeon",
  "order_scores",
  "prepare_mlp_obs",
  "prune",
  "prune_mlp_obs",
  "prune_retrain",
  "random_masks",
  "rescaled_effective",
  "rewind",
  "run_effective",
  "run_network",
  "save_supermask",
  "score_rule",
  "sparse_gpt",
  "stack_members",
  "surgeon_rule",
  "train_population",
  "weights_hash",
  "woodfisher_compensate",
  "woodfisher_inverse",
  "woodfisher_saliency",
]
