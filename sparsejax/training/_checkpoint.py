"""Orbax checkpoints with checksums and the config of the run they belong to."""

import contextlib
import hashlib
import json
import logging
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from sparsejax.core import check_arrays
from sparsejax.training import _errors, _named_arrays, _workdir
from sparsejax.training.config import difference
from sparsejax.training.parallel import _distributed

PyTree = Any

_DIGESTS = "digests.json"

FORMAT = 1  # increased when older readers would misread a new checkpoint


class _ForeignError(_errors.CheckpointError):
  """A checkpoint that another program wrote."""


class Restored(NamedTuple):
  """The result of `Checkpoints.restore`.

  Attributes:
    state: a tree like the target, with the target's dtypes and shardings; None if there
      is only one checkpoint and its writer was killed before it was complete.
    extra: the JSON values saved with the state.
    lost: one message per newer checkpoint that was skipped.
  """

  state: PyTree
  extra: dict[str, Any]
  lost: list[str]


class Checkpoints:
  """Saves and restores the checkpoints of one run, in `<workdir>/checkpoints`.

  Args:
    workdir: the run's directory.
    stamp: the run's config as JSON values. A checkpoint of another config is rejected.
    keep: the number of newest checkpoints to keep. With at least two, a damaged one
      costs only the steps since the one before.
    read_only: whether to leave the directory as it is; only `read` and `steps` may be
      called then.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    stamp: dict[str, Any],
    keep: int = 2,
    read_only: bool = False,
  ):
    self._directory = pathlib.Path(workdir).absolute() / "checkpoints"
    self._stamp = stamp
    options = ocp.CheckpointManagerOptions(
      # Orbax warns of these two in a manager that only reads.
      max_to_keep=None if read_only else keep,
      save_interval_steps=0 if read_only else 1,
      enable_async_checkpointing=False,
      read_only=read_only,
      create=not read_only,
    )
    self._open: Callable[[], ocp.CheckpointManager] = lambda: ocp.CheckpointManager(
      self._directory, options=options
    )
    with _distributed.sync_errors(), _silent():
      self._manager = self._open()

  def save(self, step: int, state: PyTree, extra: dict[str, Any]) -> None:
    """Writes a checkpoint, unless there is one of that step.

    Args:
      step: updates done so far.
      state: a tree of arrays, which may include typed PRNG keys.
      extra: JSON values to save with the state.

    Raises:
      ValueError: if `step` is not an integer of at least 0, or the state is empty.
      CheckpointError: if any process cannot write it; earlier checkpoints are kept.
    """
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
      raise ValueError(f"step must be an integer of at least 0, got {step!r}.")
    if not jax.tree.leaves(state):
      raise ValueError("state must hold at least one array, got an empty tree.")
    check_arrays("state", state)
    # The metadata lets `restore` check the run and the arrays before it reads them.
    arrays = _named_arrays.flatten(state)
    meta = {
      "format": FORMAT,
      "config": self._stamp,
      "arrays": _named_arrays.describe(arrays),
      "extra": extra,
    }
    folder = self._directory / str(step)
    try:
      with _distributed.sync_errors(_reason), _silent():
        self._manager.save(
          step,
          args=ocp.args.Composite(
            state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta)
          ),
        )
        new = folder.is_dir() and not (folder / _DIGESTS).exists()
        if jax.process_index() == 0 and new:
          # The digests come last: a checkpoint without them counts as incomplete.
          text = json.dumps(_digests(folder)) + "\n"
          _workdir.write_text(folder / _DIGESTS, text)
    except Exception as e:  # orbax and tensorstore raise many types
      # Remove what was written, and say which checkpoint a new call resumes from.
      if jax.process_index() == 0:
        for part in (folder, *self._directory.glob(f"{step}.*")):
          shutil.rmtree(part, ignore_errors=True)
      kept = [int(p.parent.name) for p in self._directory.glob(f"*/{_DIGESTS}")]
      kept = [other for other in kept if other != step]
      origin = f"from step {max(kept)}, which is kept" if kept else "from its start"
      raise _errors.CheckpointError(
        f"the checkpoint of step {step} could not be written to {self._directory}:"
        f" {_reason(e)}. Once that is mended, the same command resumes {origin}."
      ) from e

  def restore(self, target: PyTree) -> Restored | None:
    """Restores the newest good checkpoint.

    Newer ones that are damaged, incomplete (their writer was killed) or of another
    program are moved to `<workdir>/damaged` and named in the result. All processes of
    a run restore the same checkpoint; one that any process cannot read is damaged.

    Args:
      target: a state of this run, or its abstract state from `jax.eval_shape`.

    Returns:
      A `Restored`, or None if there is no checkpoint.

    Raises:
      CheckpointError: if a checkpoint is of another run, another format or has other
        arrays, or if there are checkpoints but none is good.
      ConfigError: if the processes do not see the same checkpoints.
    """
    good, lost, foreign = self._newest(self._steps(), target)
    # Without a good checkpoint, one of another program is an error; nothing is moved.
    if good is None and foreign is not None:
      raise foreign
    if lost:
      self._set_aside(lost)
    first = len(lost) == 1 and lost == {step: _unfinished(step) for step in lost}
    if good is None and first:
      good = Restored(None, {}, [])  # the run's first one: only its steps are lost
    if good is not None:
      return good._replace(lost=list(lost.values()))
    if lost:
      raise _errors.CheckpointError(
        f"no checkpoint in {self._directory} can be read: {'; '.join(lost.values())}."
        f" They were moved to {self._directory.parent / 'damaged'}; started again, the"
        " run begins at its first step."
      )
    return None

  def read(self, target: PyTree, step: int | None = None) -> Restored:
    """Reads a checkpoint and leaves all of them where they are.

    Args:
      target: a state of this run, or its abstract state from `jax.eval_shape`.
      step: the step of the checkpoint; None for the newest good one.

    Returns:
      A `Restored` with a state.

    Raises:
      CheckpointError: if there is no checkpoint, or none of that step; if none can be
        read; or as for `restore`.
    """
    steps = self._steps()
    if not steps:
      raise _errors.CheckpointError(f"there is no checkpoint in {self._directory}")
    if step is not None:
      if step not in steps:
        raise _errors.CheckpointError(
          f"step must be one of the checkpoints in {self._directory},"
          f" {', '.join(map(str, reversed(steps)))}; got {step!r}"
        )
      steps = [step]
    good, lost, foreign = self._newest(steps, target)
    if good is not None:
      return good
    if foreign is not None:
      raise foreign
    raise _errors.CheckpointError(
      f"no checkpoint in {self._directory} can be read: {'; '.join(lost.values())}"
    )

  def steps(self) -> list[int]:
    """Returns the steps of the existing checkpoints, in ascending order."""
    return sorted(self._manager.all_steps())

  def close(self) -> None:
    """Stops orbax's threads."""
    self._manager.close()

  def _steps(self) -> list[int]:
    """Returns the steps of the checkpoints, newest first, the same in all processes."""
    steps = sorted(self._manager.all_steps(), reverse=True)
    _distributed.check_same("the checkpoints (in a workdir that all share)", str(steps))
    return steps

  def _newest(
    self, steps: list[int], target: PyTree
  ) -> tuple[Restored | None, dict[int, str], _ForeignError | None]:
    """Reads the first good checkpoint of some steps.

    Returns:
      The checkpoint, or None; why each step before it was skipped; and the error of a
      checkpoint that another program wrote, if there was one.
    """
    lost: dict[int, str] = {}
    foreign = None
    for step in steps:
      what = f"the checkpoint of step {step}"
      try:
        # Checked first, because orbax does not always raise for damaged files.
        with _distributed.sync_errors(_reason):
          finished = _check_digests(self._directory / str(step))
        finished = _distributed.all_processes(finished)
        meta = self._read_meta(step)
        if not finished:
          lost[step] = _unfinished(step)
          continue
        # Compare run, format and arrays with the metadata, then read the arrays.
        self._check_belongs(step, meta, target)
        arrays = self._read_arrays(step, target, set(meta["arrays"]))
        state = _named_arrays.unflatten(target, arrays)
        return Restored(state, meta["extra"], []), lost, foreign
      except _ForeignError as e:
        foreign = e
        lost[step] = f"{what} was not written by this program"
      except _errors.CheckpointError:
        raise
      except Exception as e:  # orbax and tensorstore raise many types
        lost[step] = f"{what} is damaged ({_reason(e)})"
    return None, lost, foreign

  def _read_meta(self, step: int) -> dict[str, Any]:
    """Reads a checkpoint's metadata."""
    item = self._directory / str(step) / "meta"
    if not _distributed.all_processes(item.exists()):
      raise _ForeignError(
        f"the checkpoint {item.parent} was not written by this program: it has no"
        f" 'meta' item. Give another --workdir."
      )
    with _distributed.sync_errors(_reason):
      restored = self._manager.restore(
        step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
      )
    return restored["meta"]

  def _read_arrays(
    self, step: int, target: PyTree, saved: set[str]
  ) -> dict[str, jax.Array]:
    """Reads a checkpoint's arrays, with the target's shapes, dtypes and shardings."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    # `eval_shape`, which gives the arrays' names and shapes, drops their shardings.
    places = {
      _named_arrays.path_name(path): getattr(x, "sharding", None)
      for path, x in jax.tree_util.tree_leaves_with_path(target)
    }
    abstract = {
      name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places[name] or device)
      for name, x in jax.eval_shape(_named_arrays.flatten, target).items()
      if name in saved or not _named_arrays.optional(name)
    }
    with _distributed.sync_errors(_reason):
      restored = self._manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
      )
    return restored["state"]

  def _check_belongs(self, step: int, meta: dict[str, Any], target: PyTree) -> None:
    """Raises unless a checkpoint has this program's format, run and arrays."""
    where = f"the checkpoint of step {step} in {self._directory}"
    if not isinstance(meta, dict) or "format" not in meta or "config" not in meta:
      raise _ForeignError(
        f"{where} was not written by this program. Give another --workdir."
      )
    if meta["format"] != FORMAT:
      raise _errors.CheckpointError(
        f"{where} must be of format {FORMAT}; got {meta['format']}"
      )
    changed = difference(meta["config"], self._stamp)
    if changed:
      raise _errors.CheckpointError(
        f"{where} is another run's: " + "; ".join(changed) + ". Give another --workdir."
      )
    # Compare names, dtypes and shapes of the arrays.
    wanted = {
      name: kind
      for name, kind in _named_arrays.describe(
        jax.eval_shape(_named_arrays.flatten, target)
      ).items()
      if name in meta["arrays"] or not _named_arrays.optional(name)
    }
    changed = difference(meta["arrays"], wanted)
    if changed:
      raise _errors.CheckpointError(
        f"{where} holds other arrays than this program trains (saved -> now): "
        + "; ".join(changed[:8])
      )

  def _set_aside(self, steps: Iterable[int]) -> None:
    """Moves checkpoints to `<workdir>/damaged`."""
    self._manager.close()
    _distributed.wait("checkpoints are looked at")
    with _distributed.sync_errors():
      if jax.process_index() == 0:
        aside = self._directory.parent / "damaged"
        aside.mkdir(exist_ok=True)
        for step in steps:
          shutil.rmtree(aside / str(step), ignore_errors=True)
          shutil.move(self._directory / str(step), aside / str(step))
    self._manager = self._open()


def _unfinished(step: int) -> str:
  """Returns the words for a checkpoint whose writer was killed."""
  return f"the checkpoint of step {step} was not finished"


def _digests(folder: pathlib.Path) -> dict[str, str]:
  """Returns the SHA-256 of each file of a checkpoint, by its relative path."""
  files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != _DIGESTS)
  return {
    p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
    for p in files
  }


def _check_digests(folder: pathlib.Path) -> bool:
  """Returns whether a checkpoint is complete; raises ValueError if it is damaged."""
  if not (folder / _DIGESTS).exists():
    return False
  expected = json.loads((folder / _DIGESTS).read_text())
  changed = sorted(name for name, _ in expected.items() ^ _digests(folder).items())
  if changed:
    raise ValueError(f"{changed[0]} is not what was written")
  return True


def _reason(e: Exception) -> str:
  """Returns the part of an error's text that a user can act on."""
  text = str(e)
  for known in ("No space left on device", "Read-only file system"):
    if known in text:
      return known
  return text.partition("\n")[0][:200] or type(e).__name__


@contextlib.contextmanager
def _silent() -> Iterator[None]:
  """Stops orbax from logging the traceback of an error that is reported in one line."""
  logger = logging.getLogger("absl")
  before, logger.disabled = logger.disabled, True
  try:
    yield
  finally:
    logger.disabled = before
