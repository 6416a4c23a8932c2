"""Errors that a user can act on: the command line prints them without a traceback."""


class TrainingError(Exception):
  """The base of errors whose cause is a setting, a data set or a file."""


class ConfigError(TrainingError, ValueError):
  """An invalid field of a config, or an invalid argument."""


class DatasetNotFoundError(TrainingError, FileNotFoundError):
  """A data set that is not on this machine, or not in a readable format."""


class CheckpointError(TrainingError, RuntimeError):
  """A checkpoint that cannot be read or written, or is of another run."""


class WorkdirError(TrainingError, OSError):
  """A working directory that cannot be used, or belongs to another run."""


class WorkdirInUseError(WorkdirError):
  """A working directory in which another process is training."""


class NonFiniteError(TrainingError, FloatingPointError):
  """A whole epoch in which no step had a finite gradient."""


class ReplicaError(TrainingError, RuntimeError):
  """Replicas whose masks differ although they must be equal."""


# Tracebacks show the package from which users import these classes.
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
