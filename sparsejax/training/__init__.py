"""Training on real data: configs, data sets, the training loop, checkpoints, reports.

It requires the `train` extra. Importing `sparsejax` does not import this package.
"""

from sparsejax.training._checkpoint import Checkpoints, Restored
from sparsejax.training._costs import estimate as estimate_costs
from sparsejax.training._costs import history as cost_history
from sparsejax.training._costs import model_uses
from sparsejax.training._environment import read as read_environment
from sparsejax.training._errors import (
  CheckpointError,
  ConfigError,
  DatasetNotFoundError,
  NonFiniteError,
  ReplicaError,
  TrainingError,
  WorkdirError,
  WorkdirInUseError,
)
from sparsejax.training._functions import Functions, auxiliary_loss, from_flax
from sparsejax.training._interrupt import listen as listen_for_signals
from sparsejax.training._load import LoadedRun, load_run
from sparsejax.training._loop import train_and_evaluate
from sparsejax.training._methods import METHODS, forward_params_fn
from sparsejax.training._methods import function as method_function
from sparsejax.training._metrics import FILE as METRICS_FILE
from sparsejax.training._metrics import Writer as MetricsWriter
from sparsejax.training._metrics import read as read_metrics
from sparsejax.training._optimizers import learning_rate as learning_rate_schedule
from sparsejax.training._optimizers import make_tx as make_optimizer
from sparsejax.training._optimizers import unguarded as make_unguarded_optimizer
from sparsejax.training._program import Program, evaluation_batch, make_program
from sparsejax.training._progress import Progress
from sparsejax.training._progress import duration as format_duration
from sparsejax.training._provenance import commit as current_commit
from sparsejax.training._provenance import environment
from sparsejax.training._result import FILE as RESULT_FILE
from sparsejax.training._result import Result
from sparsejax.training._result import percent as format_percent
from sparsejax.training._run import Run, place_splits, prepare
from sparsejax.training._run import named as arrays_by_path
from sparsejax.training._run import place as place_arrays
from sparsejax.training._run import start as initial_state
from sparsejax.training._run import target as abstract_state
from sparsejax.training._step import (
  TrainState,
  cross_entropy,
  no_totals,
  sum_batches,
  train_step,
)
from sparsejax.training._workdir import check as check_workdir
from sparsejax.training._workdir import claim as claim_workdir
from sparsejax.training._workdir import exclusive as exclusive_workdir
from sparsejax.training._workdir import json_text, read_json, write_text
from sparsejax.training.config import (
  Rules,
  TrainConfig,
  check_rules,
  config_help,
  default_config,
  to_config_dict,
  total_steps,
  use_method,
)
from sparsejax.training.config import checked as checked_config
from sparsejax.training.config import complete as complete_config
from sparsejax.training.config import describe as describe_config
from sparsejax.training.config import difference as config_difference
from sparsejax.training.config import empty as empty_dict
from sparsejax.training.config import filled as fill_config
from sparsejax.training.config import from_json as config_from_json
from sparsejax.training.config import to_json as config_to_json
from sparsejax.training.config import use_variant as use_supermask_variant

__all__ = [
  "CheckpointError",
  "ConfigError",
  "DatasetNotFoundError",
  "LoadedRun",
  "NonFiniteError",
  "ReplicaError",
  "Result",
  "TrainConfig",
  "TrainingError",
  "WorkdirError",
  "WorkdirInUseError",
  "default_config",
  "load_run",
  "train_and_evaluate",
  "use_method",
]
