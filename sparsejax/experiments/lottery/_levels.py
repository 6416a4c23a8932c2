"""Files of a lottery ticket experiment: one folder per arm, verified by hashes.

They are .npz files and not checkpoints of orbax, which are restored as a whole into a
state of known shapes: a report reads masks without a model, and a level reads the
weights of several others.
"""

import hashlib
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

import sparsejax as sj
from sparsejax.core import path_string, read_archive, write_archive
from sparsejax.training import (
  CheckpointError,
  WorkdirError,
  json_text,
  read_json,
  write_text,
)

PyTree = Any
_STAMP = "level.json"
MASKS, METRICS, WEIGHTS = "masks.npz", "metrics.json", "weights.npz"


class Arm(NamedTuple):
  """An arm of an experiment, which is trained for all seeds together.

  Attributes:
    kind: "dense", "ticket", "one_shot" or the name of a control; or "rewind", whose
      levels 0 and 1 are the weights of the first step and of the rewind step.
    level: how often the network was pruned.
  """

  kind: str
  level: int


def folder(workdir: pathlib.Path, arm: Arm) -> pathlib.Path:
  """Returns the folder of an arm."""
  return workdir / arm.kind / f"level_{arm.level:02d}"


def write(
  workdir: pathlib.Path,
  arm: Arm,
  config: str,
  *,
  weights: PyTree,
  masks: PyTree = None,
  metrics: dict[str, Any] | None = None,
) -> None:
  """Writes an arm, which counts as done once its last file, the stamp, exists.

  Args:
    workdir: the experiment's directory.
    arm: the arm.
    config: digest of the experiment's config.
    weights: tree of arrays, stacked over seeds.
    masks: tree of bool arrays, stacked over seeds.
    metrics: JSON values.
  """
  place = folder(workdir, arm)
  place.mkdir(parents=True, exist_ok=True)
  named = {
    f"weights:{path_string(path)}": np.asarray(x)
    for path, x in jax.tree_util.tree_leaves_with_path(weights)
  }
  write_archive(place / WEIGHTS, named)
  if masks is not None:
    sj.save_masks(place / MASKS, masks)
  if metrics is not None:
    write_text(place / METRICS, json_text(metrics))
  stamp = {"config": config, "cell": list(arm), "files": _digests(place)}
  write_text(place / _STAMP, json.dumps(stamp, indent=1) + "\n")


def done(workdir: pathlib.Path, arm: Arm, config: str) -> bool:
  """Returns whether an arm is finished, and verifies its config and files.

  Args:
    workdir: the experiment's directory.
    arm: the arm.
    config: digest of the experiment's config.

  Returns:
    False if the arm is not finished.

  Raises:
    WorkdirError: the arm belongs to a different config.
    CheckpointError: one of its files has changed since it was written.
  """
  place = folder(workdir, arm)
  file = place / _STAMP
  if not file.exists():
    return False
  try:
    stamp = json.loads(file.read_text())
    found, expected = stamp["config"], stamp["files"]
  except (ValueError, KeyError, TypeError) as e:
    raise CheckpointError(f"{file} cannot be read: {e!r}") from e
  if found != config or stamp.get("cell") != list(arm):
    raise WorkdirError(
      f"{place} must be of this config ({config}); it is {stamp.get('cell')} of"
      f" {found}. Give another --workdir."
    )
  changed = sorted(name for name, _ in expected.items() ^ _digests(place).items())
  if changed:
    raise CheckpointError(
      f"{place / changed[0]} is not what was written; remove {place} to train it again"
    )
  return True


def read_weights(workdir: pathlib.Path, arm: Arm, like: PyTree) -> PyTree:
  """Reads the weights of a finished arm.

  Args:
    workdir: the experiment's directory.
    arm: the arm.
    like: a tree with the structure and shapes that were written; may be abstract.

  Returns:
    A tree of NumPy arrays.

  Raises:
    CheckpointError: the arm is missing, or its shapes differ.
  """
  file = folder(workdir, arm) / WEIGHTS
  if not file.exists():
    what = "rewind point" if arm.kind == "rewind" else "level"
    raise CheckpointError(
      f"{what} {file} is missing; it is made by the dense training: remove"
      f" {folder(workdir, Arm('dense', 0))} to train that again"
    )
  held = read_archive(file, "a level")
  arrays = {name.removeprefix("weights:"): x for name, x in held.items()}
  leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
  for path, leaf in leaves:
    name = path_string(path)
    if name not in arrays or arrays[name].shape != leaf.shape:
      raise CheckpointError(
        f"{file} must hold {name} of shape {leaf.shape}; got"
        f" {arrays[name].shape if name in arrays else 'none'}"
      )
  return treedef.unflatten(arrays[path_string(path)] for path, _ in leaves)


def read_masks(workdir: pathlib.Path, arm: Arm, like: PyTree) -> PyTree:
  """Reads the masks of a finished arm; see `sj.load_masks`."""
  return sj.load_masks(folder(workdir, arm) / MASKS, like)


def read_metrics(workdir: pathlib.Path, arm: Arm) -> dict[str, Any]:
  """Reads the metrics of a finished arm."""
  return read_json(folder(workdir, arm) / METRICS)


def arms(workdir: pathlib.Path) -> list[Arm]:
  """Returns all finished arms: dense, tickets by level, one-shot tickets, controls."""
  found = [
    Arm(place.parent.name, int(place.name.removeprefix("level_")))
    for place in workdir.glob("*/level_*")
    if (place / _STAMP).exists() and (place / MASKS).exists()
  ]
  order = {"dense": 0, "ticket": 1, "one_shot": 2}
  return sorted(found, key=lambda c: (order.get(c.kind, 3), c))


def _digests(place: pathlib.Path) -> dict[str, str]:
  return {
    name: hashlib.sha256((place / name).read_bytes()).hexdigest()
    for name in (WEIGHTS, MASKS, METRICS)
    if (place / name).exists()
  }
