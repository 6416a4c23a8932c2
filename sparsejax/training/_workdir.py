"""Reserves a working directory for one run."""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import IO, Any, BinaryIO

import jax

from sparsejax import core
from sparsejax.training import _errors
from sparsejax.training.config import difference
from sparsejax.training.parallel import _distributed

_CONFIG = "config.json"
_TRACES = ("metrics.jsonl", "checkpoints")


@contextlib.contextmanager
def exclusive(workdir: os.PathLike | str) -> Iterator[pathlib.Path]:
  """Creates the directory and locks it against other runs.

  Args:
    workdir: the run's directory; `~` is expanded.

  Yields:
    The directory's absolute path.

  Raises:
    WorkdirError: if it cannot be written; `WorkdirInUseError` if another process is
      training there.
  """
  with contextlib.ExitStack() as open_files:
    with _distributed.sync_errors():
      if not isinstance(workdir, str | os.PathLike) or not str(workdir):
        raise _errors.WorkdirError(f"workdir must name a directory; got {workdir!r}")
      path = pathlib.Path(workdir).expanduser().absolute()
      try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open_files.enter_context(open(path / ".lock", "a"))
      except OSError as e:
        raise _errors.WorkdirError(
          "workdir must be a directory that can be written; got"
          f" {path}: {e.strerror or e}"
        ) from e
      if jax.process_index() == 0:  # its lock serves all processes of the run
        _lock(lock, path)
    yield path


def _lock(file: IO[str], path: pathlib.Path) -> None:
  """Locks a file until it is closed; raises if another process has locked it."""
  try:
    import fcntl
  except ImportError:  # Windows: no lock, everything else works
    return
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as e:
    raise _errors.WorkdirInUseError(
      f"workdir {path} is in use: another process is training there"
    ) from e


def check(workdir: pathlib.Path, config: dict[str, Any]) -> None:
  """Raises if a directory belongs to another run.

  Args:
    workdir: an existing directory.
    config: the run's config as JSON values, from `config_to_json`.

  Raises:
    WorkdirError: if the directory contains another config, one that cannot be read,
      files of a run without a config, or directories of other runs. Names each field
      that differs.
  """
  file = workdir / _CONFIG
  if not file.exists():
    traces = [name for name in _TRACES if (workdir / name).exists()]
    if traces:
      raise _errors.WorkdirError(
        f"workdir {workdir} holds {' and '.join(traces)} but no {_CONFIG}, so it cannot"
        " be told what run they are of. Give another --workdir."
      )
    inside = sorted(file.parent.name for file in workdir.glob(f"*/{_CONFIG}"))
    if inside:
      raise _errors.WorkdirError(
        f"workdir {workdir} holds other runs, such as {inside[0]!r}. Give a directory"
        f" of its own, such as {workdir / 'new'}."
      )
    return
  try:
    old = json.loads(file.read_text())
    if not isinstance(old, dict):
      raise ValueError("not an object")
  except (OSError, ValueError) as e:
    raise _errors.WorkdirError(
      f"{file} cannot be read ({e}), so it cannot be told what run the directory is of."
      " Give another --workdir."
    ) from e
  lines = difference(old, config)
  if lines:
    raise _errors.WorkdirError(
      f"workdir {workdir} holds another run. What differs (there -> asked for):\n  "
      + "\n  ".join(lines)
      + "\nGive another --workdir, or the config it was started with."
    )


def claim(workdir: pathlib.Path, config: dict[str, Any]) -> None:
  """Writes the config into the directory, unless it has one."""
  if not (workdir / _CONFIG).exists():
    write_text(workdir / _CONFIG, json.dumps(config, indent=2) + "\n")


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Opens a file that replaces another one atomically, if the block raises nothing.

  Args:
    path: the file to replace, in an existing directory.

  Yields:
    A temporary file, open for writing bytes.

  Raises:
    WorkdirError: if the file cannot be written.
  """
  try:
    with core.replacing(path) as file:
      yield file
  except OSError as e:
    raise _errors.WorkdirError(f"{path} cannot be written: {e.strerror or e}") from e


def write_text(path: pathlib.Path, text: str) -> None:
  """Replaces a file's text atomically: a reader sees the old text or the new one.

  Args:
    path: the file, in an existing directory.
    text: the whole new text.

  Raises:
    WorkdirError: if the file cannot be written.
  """
  with replacing(path) as file:
    file.write(text.encode())


def json_text(value: Any, indent: int | None = None) -> str:
  """Formats a value as JSON; numbers that are not finite become null.

  JSON has no NaN and no infinity, which a run that diverged has in its results.

  Args:
    value: JSON values, possibly with NaN and infinities.
    indent: see `json.dumps`.

  Returns:
    A line, or lines, that any reader of JSON accepts.

  Example:
    >>> print(json_text({"test_loss": [2.5, float("nan")]}), end="")
    {"test_loss": [2.5, null]}
  """

  def finite(value):
    if isinstance(value, dict):
      return {name: finite(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
      return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
      return None
    return value

  return json.dumps(finite(value), indent=indent, allow_nan=False) + "\n"


def read_json(path: pathlib.Path) -> Any:
  """Reads a file that `json_text` made; each null in a list becomes NaN.

  Args:
    path: the file.

  Returns:
    The JSON values. A null that is not in a list stays None.
  """

  def restored(value, listed=False):
    if isinstance(value, dict):
      return {name: restored(v) for name, v in value.items()}
    if isinstance(value, list):
      return [restored(v, True) for v in value]
    return math.nan if value is None and listed else value

  return restored(json.loads(path.read_text()))
