"""Methods of the forward pass: masks, soft masks and changes of variables."""

from sparsejax.methods.forward._continuous_sparsification import (
  continuous_sparsification,
)
from sparsejax.methods.forward._powerpropagation import (
  power_updates,
  powerpropagation,
)
from sparsejax.methods.forward._s_ste import s_ste
from sparsejax.methods.forward._soft_threshold import (
  init_thresholds,
  soft_threshold,
  soft_threshold_masks,
)
from sparsejax.methods.forward._spartan import spartan
from sparsejax.methods.forward._sr_ste import sr_ste
from sparsejax.methods.forward._straight_through import straight_through
from sparsejax.methods.forward._supermask import (
  init_scores,
  supermask,
  supermask_masks,
)
from sparsejax.methods.forward._top_kast import top_kast

__all__ = [
  "continuous_sparsification",
  "init_scores",
  "init_thresholds",
  "power_updates",
  "powerpropagation",
  "s_ste",
  "soft_threshold",
  "soft_threshold_masks",
  "spartan",
  "sr_ste",
  "straight_through",
  "supermask",
  "supermask_masks",
  "top_kast",
]
