"""What everything stands on: exact selection, mask trees, leaf selection, budgets."""

from sparsejax.core.checksum import check_replicas, mask_checksum, replica_checksums
from sparsejax.core.global_selection import split_k
from sparsejax.core.kernel_axes import KernelAxes, LayerAxes
from sparsejax.core.mask_files import load_masks, save_masks
from sparsejax.core.masks import (
  apply_masks,
  masks,
  pack,
  skipped_updates,
  summary,
  unpack,
)
from sparsejax.core.replace import densify, with_masks
from sparsejax.core.rescale import rescale
from sparsejax.core.selection import top_k_mask
from sparsejax.core.structures import (
  Structure,
  block,
  channel,
  compress_n_m,
  constant_fan_in,
  expand_n_m,
  n_m,
)
from sparsejax.core.types import (
  MaskTransform,
  Moments,
  ScoreInputs,
  SparseState,
  Topology,
)

__all__ = [
  "KernelAxes",
  "LayerAxes",
  "MaskTransform",
  "Moments",
  "ScoreInputs",
  "SparseState",
  "Structure",
  "Topology",
  "apply_masks",
  "block",
  "channel",
  "check_replicas",
  "compress_n_m",
  "constant_fan_in",
  "densify",
  "expand_n_m",
  "load_masks",
  "mask_checksum",
  "masks",
  "n_m",
  "pack",
  "replica_checksums",
  "rescale",
  "save_masks",
  "skipped_updates",
  "split_k",
  "summary",
  "top_k_mask",
  "unpack",
  "with_masks",
]
