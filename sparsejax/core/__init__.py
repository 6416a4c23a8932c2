"""The shared base of all packages: types, masks, exact selection and budgets."""

from sparsejax.core._budgets import (
  apportion,
  apportion_equal_spill,
  from_vector,
  layer_sizes,
  live_counts,
  live_in,
  mean_scores,
  quantize,
  size_per_live,
  to_vector,
)
from sparsejax.core._checks import (
  check_callable,
  check_finite,
  check_flag,
  check_integer,
  check_key,
  check_mapping,
  check_number,
  check_optimizer,
  check_regex,
  check_scalar,
  check_score,
  check_tuple,
  check_value,
  did_you_mean,
  may_be_nonzero,
)
from sparsejax.core._containers import boxed_like, is_placeholder, unboxed
from sparsejax.core._epochs import Pace, epoch_order, run_steps, salted
from sparsejax.core._global_selection import split_k, split_layers
from sparsejax.core._io import (
  load_masks,
  mask_arrays,
  read_archive,
  replacing,
  save_masks,
  write_archive,
)
from sparsejax.core._kernel_axes import (
  InputAxes,
  KernelAxes,
  LayerAxes,
  Stacked,
  check_input_axes,
  check_known,
  check_stacked,
  layer_axes,
  layer_shapes,
  plain_axes,
)
from sparsejax.core._kernels import is_kernel
from sparsejax.core._masks import (
  apply_masks,
  copied,
  masked_copy,
  masks,
  merged_masks,
  pack,
  rescale,
  skipped_updates,
  soft_masks,
  sparse_states,
  summary,
  unpack,
)
from sparsejax.core._packed import pack_tree, unpack_tree
from sparsejax.core._polar import nearest_orthogonal
from sparsejax.core._reduce import count, replicated
from sparsejax.core._replace import densify, with_masks
from sparsejax.core._replica_check import (
  check_replicas,
  mask_checksum,
  replica_checksums,
)
from sparsejax.core._safetensors import load_safetensors, save_safetensors
from sparsejax.core._select import select as select_masked
from sparsejax.core._selection import (
  check_scores,
  ordered_bits,
  put_first,
  scores_are_finite,
  select,
  top_k_mask,
  top_k_masks,
)
from sparsejax.core._sharding import leaf_keys, shard_like, true_like, uniform_like
from sparsejax.core._stacked import stacked_axes
from sparsejax.core._steps import sum_dtype, update_or_zero, updated, widened
from sparsejax.core._tree import (
  Where,
  align,
  check_arrays,
  check_masks,
  check_where,
  choose,
  is_array,
  merge,
  named_leaves,
  path_string,
  selected,
  without_statics,
)
from sparsejax.core._types import (
  Array,
  CondensedState,
  DenseGradients,
  Distribution,
  ForwardState,
  MaskTransform,
  Moments,
  PyTree,
  Score,
  ScoreInputs,
  SparseState,
  Topology,
)
from sparsejax.core._warm_selection import initial_warm_start, warm_select
from sparsejax.core.structures import (
  Structure,
  block,
  channel,
  compress_n_m,
  constant_fan_in,
  expand_n_m,
  n_m,
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
  "load_safetensors",
  "mask_checksum",
  "masks",
  "n_m",
  "pack",
  "replica_checksums",
  "rescale",
  "save_masks",
  "save_safetensors",
  "skipped_updates",
  "soft_masks",
  "split_k",
  "summary",
  "top_k_mask",
  "unpack",
  "with_masks",
]
