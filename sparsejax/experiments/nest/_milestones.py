"""Files of the networks that a synthesis keeps: a record and arrays per milestone.

The arrays are an .npz file and not a checkpoint of orbax: they are an exported network,
which is read without the data set that the shapes of a checkpoint follow from.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from sparsejax import models
from sparsejax.core import read_archive, write_archive
from sparsejax.training import CheckpointError, arrays_by_path, json_text, write_text

PyTree = Any


def write(
  workdir: pathlib.Path,
  index: int,
  record: Mapping[str, Any],
  trees: Mapping[str, PyTree],
) -> None:
  """Writes `milestone_i.npz`, then `milestone_i.json`, each atomically.

  Args:
    workdir: the run's directory.
    index: the index i of the milestone.
    record: JSON values, including `features` and `num_classes`.
    trees: the trees `params`, `masks` and `state`, which `load` returns.
  """
  arrays = {name: np.asarray(x) for name, x in arrays_by_path(trees).items()}
  write_archive(workdir / f"milestone_{index}.npz", arrays)
  write_text(workdir / f"milestone_{index}.json", json_text(record, indent=1))


def read(workdir: os.PathLike | str) -> list[dict[str, Any]]:
  """Reads the records of all milestones that `grow_and_prune` has written.

  The records are in the order of the milestones' indices.
  """
  found = pathlib.Path(workdir).glob("milestone_*.json")
  # By number: as text, 10 would come before 2.
  found = sorted(found, key=lambda file: int(file.stem.removeprefix("milestone_")))
  return [json.loads(file.read_text()) for file in found]


def load(workdir: os.PathLike | str, index: int) -> tuple[Any, PyTree, PyTree, PyTree]:
  """Loads the network of a milestone of `grow_and_prune`.

  Args:
    workdir: the run's directory.
    index: the index of the milestone.

  Returns:
    The flax module, its params (masked), its masks, and its other variables. Partial
    areas are among these as `areas`; `growth.with_areas` makes the module use them.

  Raises:
    CheckpointError: there is no such milestone, or its files cannot be read.
  """
  path, name = pathlib.Path(workdir), f"milestone_{index}"
  # The record is written last, so that a milestone without one is not finished.
  try:
    config = json.loads((path / "config.json").read_text())
    record = json.loads((path / f"{name}.json").read_text())
    arrays = read_archive(path / f"{name}.npz", "grow_and_prune")
  except (OSError, ValueError) as e:
    raise CheckpointError(f"{name} of {path} cannot be read: {e}") from e
  model = models.create(
    config["model"],
    num_classes=record["num_classes"],
    features=tuple(record["features"]),
    **config["model_kwargs"],
  )
  trees = traverse_util.unflatten_dict(jax.tree.map(jnp.asarray, arrays), sep="/")
  return model, *(trees.get(name, {}) for name in ("params", "masks", "state"))
