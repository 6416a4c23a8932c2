"""Trials of damaged or foreign checkpoints, and of disks without room."""

import contextlib
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from sparsejax.training import Checkpoints, Restored, TrainingError

STAMP = {"density": 0.1, "seed": 0}
_SIZE = 300  # of the kernel: what a tiny disk has no room for three times


def state(step: int) -> dict[str, Any]:
  key = jax.random.key(step)
  kernel = jax.random.normal(key, (_SIZE, _SIZE))
  return {"params": kernel, "mask": kernel > 0, "step": jnp.int32(step)}


def write(folder: pathlib.Path, *steps: int) -> None:
  checkpoints = Checkpoints(folder, STAMP)
  try:
    for step in steps:
      checkpoints.save(step, state(step), {})
  finally:
    checkpoints.close()


def read(folder: pathlib.Path) -> Restored | None:
  checkpoints = Checkpoints(folder, STAMP)
  try:
    return checkpoints.restore(jax.eval_shape(lambda: state(0)))
  finally:
    checkpoints.close()


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)


def _truncated(folder, rng):
  file = rng.choice(_files(folder))
  file.write_bytes(file.read_bytes()[: rng.integers(file.stat().st_size)])


def _flipped(folder, rng):
  file = rng.choice(_files(folder))
  content = bytearray(file.read_bytes())
  content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
  file.write_bytes(bytes(content))


def _half_deleted(folder, rng):
  files = _files(folder)
  for file in rng.permutation(np.array(files, object))[: (len(files) + 1) // 2]:
    file.unlink()


def _swapped(folder, rng):
  """Replaces a checkpoint's file by the same file of the checkpoint before it."""
  older = folder.parent / "20"
  names = [p.relative_to(folder) for p in _files(folder)]
  both = [n for n in names if (older / n).exists()]
  both = [n for n in both if (older / n).read_bytes() != (folder / n).read_bytes()]
  name = rng.choice(np.array(both, object))
  shutil.copy(older / name, folder / name)


def _without_digests(folder, rng):
  (folder / "digests.json").unlink()


def _without_arrays(folder, rng):
  shutil.rmtree(folder / rng.choice(["state", "meta"]))


def _foreign(folder, rng):
  with ocp.CheckpointManager(folder.parent) as manager:
    manager.save(
      50, args=ocp.args.StandardSave({"w": jnp.ones(int(rng.integers(1, 9)))})
    )
  shutil.rmtree(folder)


def _empty(folder, rng):
  shutil.rmtree(folder)
  folder.mkdir()


KINDS: dict[str, Callable] = {
  "truncated": _truncated,
  "bit_flipped": _flipped,
  "half_deleted": _half_deleted,
  "swapped": _swapped,
  "without_digests": _without_digests,
  "without_a_part": _without_arrays,
  "foreign": _foreign,
  "empty": _empty,
}


class Trials:
  """Damages the newest of two checkpoints, or leaves no room to write it.

  Args:
    folder: folder of the trials; a pair of good checkpoints is written there first.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    shutil.rmtree(folder, ignore_errors=True)
    write(folder / "good", 20, 30)

  def __call__(self, number: int) -> dict[str, Any]:
    """Runs one trial; the kinds take turns, and two of a dozen use other disks.

    Args:
      number: selects the kind and seeds the damage.

    Returns:
      `ok`: whether the checkpoint before was restored bit for bit, and the loss
      reported.
    """
    rng = np.random.default_rng([7, number])
    if number % 12 >= 10 and os.getuid() == 0:
      kind = ("full_disk", "read_only")[number % 2]
      return {"ok": _on_a_disk(self._folder / "disk", kind), "kind": kind}
    kind = list(KINDS)[number % len(KINDS)]
    path = self._folder / "damaged"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(self._folder / "good", path)
    KINDS[kind](path / "checkpoints" / "30", rng)
    found = read(path)
    ok = found is not None and len(found.lost) == 1 and _same(found.state, state(20))
    return {"ok": ok, "kind": kind, "lost": [] if found is None else found.lost}


def _same(a: Any, b: Any) -> bool:
  if a is None:
    return False
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in pairs)


def _on_a_disk(path: pathlib.Path, kind: str) -> bool:
  """Returns whether an unwritable checkpoint raises one error and loses nothing."""
  path.mkdir(parents=True, exist_ok=True)
  with _mounted(path, "1m"):
    write(path, 10)
    if kind == "read_only":
      subprocess.run(["mount", "-o", "remount,ro", path], check=True)
    words = {
      "full_disk": "No space left on device",
      "read_only": "Read-only file system",
    }
    message = ""
    try:
      write(path, 20, 30, 40)
    except (TrainingError, OSError) as e:
      message = str(e)
    if kind == "read_only":
      subprocess.run(["mount", "-o", "remount,rw", path], check=True)
    kept = [int(p.name) for p in (path / "checkpoints").iterdir() if p.name.isdigit()]
    found = read(path)
    whole = found is not None and _same(found.state, state(max(kept)))
    return words[kind] in message and str(path) in message and whole


@contextlib.contextmanager
def _mounted(path: pathlib.Path, size: str):
  mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path]
  subprocess.run(mount, check=True)
  try:
    yield
  finally:
    subprocess.run(["umount", "-l", path], check=True)
