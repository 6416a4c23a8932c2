"""The config of a training run, and what other configs share with it."""

from sparsejax.training.config._fields import (
  Rules,
  check_rules,
  filled,
  from_json,
  to_config_dict,
  to_json,
)
from sparsejax.training.config._supermask import use_variant
from sparsejax.training.config._train_config import (
  OPTIMIZERS,
  MeshConfig,
  TrainConfig,
  checked,
  complete,
  config_help,
  default_config,
  describe,
  difference,
  empty,
  n_of_m,
  total_steps,
  use_method,
)

__all__ = [
  "OPTIMIZERS",
  "MeshConfig",
  "Rules",
  "TrainConfig",
  "check_rules",
  "checked",
  "complete",
  "config_help",
  "default_config",
  "describe",
  "difference",
  "empty",
  "filled",
  "from_json",
  "n_of_m",
  "to_config_dict",
  "to_json",
  "total_steps",
  "use_method",
  "use_variant",
]
