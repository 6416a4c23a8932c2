"""Writes and reads the metrics of a run: JSON lines, and TensorBoard on request."""

import contextlib
import json
import math
import pathlib
from collections.abc import Mapping
from typing import IO, Any

import jax
import numpy as np

from sparsejax.training import _errors, _workdir
from sparsejax.training.parallel import _distributed

FILE = "metrics.jsonl"


def read(workdir: pathlib.Path | str) -> list[dict[str, Any]]:
  """Returns the records of a run in the order in which they were written.

  A line that a crash left incomplete is skipped.

  Args:
    workdir: the run's directory.

  Returns:
    One dict per line; an empty list if the file does not exist.
  """
  file = pathlib.Path(workdir) / FILE
  if not file.exists():
    return []
  records = []
  for line in file.read_text().splitlines():
    try:
      records.append(json.loads(line))
    except ValueError:
      continue
  return records


class Writer:
  """Appends records to `<workdir>/metrics.jsonl`.

  Only the first process writes. When a run resumes at `step`, records of later steps
  are removed first, because those steps are repeated.

  Args:
    workdir: the run's directory.
    step: the step at which the run resumes; -1 for a new run.
    tensorboard: whether to write event files to `<workdir>/tensorboard` too.
  """

  def __init__(self, workdir: pathlib.Path, step: int, tensorboard: bool = False):
    self._file = self._tensorboard = None
    with _distributed.sync_errors():
      if jax.process_index() == 0:
        self._begin(workdir, step, tensorboard)

  def _begin(self, workdir: pathlib.Path, step: int, tensorboard: bool) -> None:
    file = workdir / FILE
    if file.exists():
      kept = [r for r in read(workdir) if r["step"] <= step]
      _workdir.write_text(file, "".join(json.dumps(r) + "\n" for r in kept))
    self._file = open(file, "a")  # noqa: SIM115 (closed in `__exit__`)
    if tensorboard:
      # Optional, and slow to import.
      import tensorboardX

      self._tensorboard = tensorboardX.SummaryWriter(
        str(workdir / "tensorboard"), purge_step=step + 1
      )

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes one record.

    Args:
      step: updates done so far.
      values: numbers, arrays with one number per seed, or dicts of these. A number
        that is not finite becomes null, because JSON has no NaN.

    Raises:
      WorkdirError: if the file cannot be written.
    """
    with _distributed.sync_errors():
      if self._file is not None:
        self._append(self._file, step, values)

  def _append(self, file: IO[str], step: int, values: Mapping[str, Any]) -> None:
    record = {"step": step, **_plain(values)}
    try:
      file.write(json.dumps(record) + "\n")
      file.flush()
    except OSError as e:
      with contextlib.suppress(OSError):  # flushing its buffer fails again
        file.close()
      raise _errors.WorkdirError(
        f"{file.name} cannot be written: {e.strerror or e}"
      ) from e
    if self._tensorboard is not None:
      for name, value in _flatten(values):
        mean = float(np.mean(value))
        self._tensorboard.add_scalar(name, mean, step)

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *error: Any) -> None:
    if self._file is not None:
      self._file.close()
    if self._tensorboard is not None:
      self._tensorboard.close()


def _plain(value: Any) -> Any:
  """Converts arrays and dicts of arrays to JSON values."""
  if isinstance(value, Mapping):
    return {k: _plain(v) for k, v in value.items()}
  if isinstance(value, float):
    # A float32 has about seven significant digits.
    return float(f"{value:.7g}") if math.isfinite(value) else None
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  if hasattr(value, "tolist"):
    return _plain(value.tolist())
  return value


def _flatten(values: Mapping[str, Any], prefix: str = ""):
  """Yields `(slash-separated name, value)` for each value of nested dicts."""
  for name, value in values.items():
    if isinstance(value, Mapping):
      yield from _flatten(value, f"{prefix}{name}/")
    else:
      yield prefix + name, value
