"""Training on real data: configs, data sets, the loop, checkpoints, reports.

Needs the `train` extra. Importing `sparsejax` does not import this package.
"""

from sparsejax.training.config import default_config, use_method
from sparsejax.training.errors import (
  CheckpointError,
  ConfigError,
  DatasetNotFoundError,
  NonFiniteError,
  ReplicaError,
  TrainingError,
  WorkdirError,
  WorkdirInUseError,
)
from sparsejax.training.loop import train_and_evaluate
from sparsejax.training.result import Result

__all__ = [
  "CheckpointError",
  "ConfigError",
  "DatasetNotFoundError",
  "NonFiniteError",
  "ReplicaError",
  "Result",
  "TrainingError",
  "WorkdirError",
  "WorkdirInUseError",
  "default_config",
  "train_and_evaluate",
  "use_method",
]
