"""Mask transforms, and `sparsify`, which runs them with any optax optimizer."""

from sparsejax.transforms._accumulate import accumulate
from sparsejax.transforms._at_initialization import (
  amounts,
  check_batches,
  check_loss,
  check_rounds,
  check_selection,
  comparable,
  keep_best,
  masks_from_scores,
  mean_over_batches,
  prune_by_rounds,
)
from sparsejax.transforms._by_path import by_path
from sparsejax.transforms._chain import chain
from sparsejax.transforms._check_sparse import check_sparse
from sparsejax.transforms._condensed import Condensed, condensed
from sparsejax.transforms._controls import reinitialize, shuffle_masks
from sparsejax.transforms._drop import (
  Fraction,
  ceil_fraction,
  checked_fraction,
  drop,
  fraction_rule,
)
from sparsejax.transforms._exploration import exploration_rate, track_exploration
from sparsejax.transforms._grow import grow, grow_per_neuron
from sparsejax.transforms._grow_by_paths import grow_by_paths
from sparsejax.transforms._init import init, masked_start
from sparsejax.transforms._initialize_grown import GrownState, initialize_grown
from sparsejax.transforms._inner import mask_stored_params
from sparsejax.transforms._keep import keep, masks_containing_support
from sparsejax.transforms._packed_masks import packed_masks
from sparsejax.transforms._prune_to import prune_to, reselect
from sparsejax.transforms._redistribute import (
  Rule,
  extend,
  nonzeros,
  redistribute,
  survivors,
)
from sparsejax.transforms._sparsify import check_update, sparsify
from sparsejax.transforms._sparsify_forward import (
  effective,
  map_layers,
  map_masked,
  sparsify_forward,
)
from sparsejax.transforms._when import (
  UpdateSchedule,
  check_schedule,
  check_some_update,
  mask_update_due,
)

__all__ = [
  "accumulate",
  "by_path",
  "chain",
  "check_sparse",
  "condensed",
  "drop",
  "effective",
  "exploration_rate",
  "extend",
  "grow",
  "grow_by_paths",
  "grow_per_neuron",
  "init",
  "initialize_grown",
  "keep",
  "masks_from_scores",
  "nonzeros",
  "packed_masks",
  "prune_to",
  "redistribute",
  "reinitialize",
  "reselect",
  "shuffle_masks",
  "sparsify",
  "sparsify_forward",
  "survivors",
  "track_exploration",
]
