"""Errors that a user can act on: the command line prints them without a traceback."""


class TrainingError(Exception):
  """Something outside the code is wrong: a setting, a data set, a file."""


class ConfigError(TrainingError, ValueError):
  """A field of the config breaks a rule."""


class DatasetNotFoundError(TrainingError, FileNotFoundError):
  """A data set is not on this machine in a form that can be read."""


class CheckpointError(TrainingError, RuntimeError):
  """A checkpoint cannot be read, or is not of this run."""


class WorkdirError(TrainingError, OSError):
  """The working directory cannot be used, or belongs to another run."""


class WorkdirInUseError(WorkdirError):
  """Another process is training there."""


class NonFiniteError(TrainingError, FloatingPointError):
  """Training brought forth nothing finite for a whole epoch."""


class ReplicaError(TrainingError, RuntimeError):
  """Devices that must hold the same masks do not."""


# Tracebacks name the package that users import them from.
for _error in (
  TrainingError,
  ConfigError,
  DatasetNotFoundError,
  CheckpointError,
  WorkdirError,
  WorkdirInUseError,
  NonFiniteError,
  ReplicaError,
):
  _error.__module__ = "sparsejax.training"
