"""Writes and reads the metrics of a run: JSON lines, TensorBoard, other writers."""

import contextlib
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import IO, Any, Protocol

import jax
import numpy as np

from sparsejax.analysis import layer_densities, mask_image
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


class ScalarWriter(Protocol):
  """Anything that takes scalars, such as a metric writer of CLU.

  Writers that also have the methods `write_histograms(step, arrays)` and
  `write_images(step, images)`, with the meaning that they have in CLU, receive the
  densities of layers and images of masks.
  """

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes the scalars of one step.

    Args:
      step: updates done so far.
      scalars: one number per name, such as `train_loss` or `live/dense1/kernel`.
    """
    ...


class Writer:
  """Appends records to `<workdir>/metrics.jsonl`, and passes them to other writers.

  Only the first process writes. When a run resumes at `step`, records of later steps
  are removed first, because those steps are repeated.

  Args:
    workdir: the run's directory.
    step: the step at which the run resumes; -1 for a new run.
    tensorboard: whether to write event files to `<workdir>/tensorboard` too.
    writers: further writers, which the caller closes.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    step: int,
    tensorboard: bool = False,
    writers: Sequence[ScalarWriter] = (),
  ):
    self._file = self._tensorboard = None
    self._writers: list[Any] = []
    with _distributed.sync_errors():
      if jax.process_index() == 0:
        self._begin(workdir, step, tensorboard)
        self._writers += writers

  def _begin(self, workdir: pathlib.Path, step: int, tensorboard: bool) -> None:
    file = workdir / FILE
    if file.exists():
      kept = [r for r in read(workdir) if r["step"] <= step]
      _workdir.write_text(file, "".join(map(_workdir.json_text, kept)))
    self._file = open(file, "a")  # noqa: SIM115 (closed in `__exit__`)
    if tensorboard:
      self._tensorboard = _TensorBoard(workdir / "tensorboard", step + 1)
      self._writers.append(self._tensorboard)

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes one record.

    Args:
      step: updates done so far.
      values: numbers, arrays with one number per seed, or dicts of these. A number
        that is not finite becomes null, because JSON has no NaN. Words are written to
        the file, and not passed to the other writers.

    Raises:
      WorkdirError: if the file cannot be written.
    """
    with _distributed.sync_errors():
      if self._file is not None:
        self._append(self._file, step, values)
        # Words, such as the phase of a NeST round, are in the records only.
        scalars = {
          name: float(np.mean(value))
          for name, value in _flatten(values)
          if np.asarray(value).dtype.kind not in "OU"
        }
        for writer in self._writers:
          writer.write_scalars(step, scalars)

  def write_masks(self, step: int, masks: Mapping[str, Any], seeds: int = 1) -> None:
    """Passes layer densities and images of masks to the writers that take them.

    Args:
      step: updates done so far.
      masks: bool arrays by path. Those that several processes share are left out.
      seeds: the length of their first axis, if more than 1; the first seed is shown.
    """
    kinds = ("write_histograms", "write_images")
    takers = [w for w in self._writers if any(hasattr(w, kind) for kind in kinds)]
    if not takers:
      return
    arrays = {
      name: np.asarray(mask[0] if seeds > 1 else mask)
      for name, mask in masks.items()
      if getattr(mask, "is_fully_addressable", True)
    }
    densities = np.array(list(layer_densities(arrays).values()))
    images = {
      f"masks/{name}": mask_image(mask)[None, ..., None].astype(np.float32)
      for name, mask in arrays.items()
      if mask.ndim >= 2
    }
    for writer in takers:
      if hasattr(writer, "write_histograms") and len(densities):
        writer.write_histograms(step, {"layer_densities": densities})
      if hasattr(writer, "write_images"):
        writer.write_images(step, images)

  def _append(self, file: IO[str], step: int, values: Mapping[str, Any]) -> None:
    record = {"step": step, **_plain(values)}
    try:
      file.write(_workdir.json_text(record))
      file.flush()
    except OSError as e:
      with contextlib.suppress(OSError):  # flushing its buffer fails again
        file.close()
      raise _errors.WorkdirError(
        f"{file.name} cannot be written: {e.strerror or e}"
      ) from e

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *error: Any) -> None:
    if self._file is not None:
      self._file.close()
    if self._tensorboard is not None:
      self._tensorboard.close()


class _TensorBoard:
  """Writes event files; earlier events from `purge_step` on are discarded.

  A file is created by the first event, so that a finished run adds none.
  """

  def __init__(self, folder: pathlib.Path, purge_step: int):
    # Optional, and slow to import.
    import tensorboardX

    self._open = functools.partial(
      tensorboardX.SummaryWriter, str(folder), purge_step=purge_step
    )

  @functools.cached_property
  def _events(self) -> Any:
    return self._open()

  def close(self) -> None:
    if "_events" in vars(self):
      self._events.close()

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    for name, value in scalars.items():
      self._events.add_scalar(name, value, step)

  def write_histograms(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
    for name, values in arrays.items():
      self._events.add_histogram(name, values, step)

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    for name, batch in images.items():
      self._events.add_image(name, batch[0], step, dataformats="HWC")


def check_writers(writers: Sequence[ScalarWriter]) -> None:
  """Raises `ConfigError` unless every writer has `write_scalars`."""
  for writer in writers:
    if not callable(getattr(writer, "write_scalars", None)):
      raise _errors.ConfigError(
        f"writers must have a method write_scalars(step, scalars); got {writer!r}"
      )


def _plain(value: Any) -> Any:
  """Converts arrays and dicts of arrays to JSON values."""
  if isinstance(value, Mapping):
    return {k: _plain(v) for k, v in value.items()}
  if isinstance(value, float):
    return float(f"{value:.7g}")  # a float32 has about seven significant digits
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
