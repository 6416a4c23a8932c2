"""Reading of runs from their directories, for reports."""

import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from sparsejax import models
from sparsejax.analysis.costs import kernel_uses
from sparsejax.training import (
  METHODS,
  METRICS_FILE,
  RESULT_FILE,
  WorkdirError,
  cost_history,
  data,
  estimate_costs,
  read_environment,
  read_metrics,
)

MOST = 12  # the maximum number of runs on one page

_MASK = re.compile(r"opt_state/(?:.*/)?masks/(.+)")
_PARAM = re.compile(r"params/(.+)")
_STATE = re.compile(r"model_state/(.+)")


class Found(NamedTuple):
  """A run as read from its directory; arrays are those of the first seed.

  Attributes:
    name: a name that distinguishes the run from the others on the page.
    path: the run's directory.
    config: all fields of its config.
    records: the run's metrics, from `read_metrics`.
    summary: the content of the result file; empty if the run is not finished.
    environment: from `read_environment`; empty for runs of older versions.
    step: the step of the checkpoint with the params and masks; None without one.
    params: arrays by path.
    masks: bool arrays by path, True = live.
    model_state: further variables of the model, arrays by path.
    image_shape: the shape of one image; None if unknown.
    uses: how often each kernel is used per example, from `kernel_uses`; empty if
      unknown.
  """

  name: str
  path: pathlib.Path
  config: dict[str, Any]
  records: list[dict[str, Any]]
  summary: dict[str, Any]
  environment: dict[str, Any]
  step: int | None
  params: dict[str, np.ndarray]
  masks: dict[str, np.ndarray]
  model_state: dict[str, np.ndarray]
  image_shape: tuple[int, ...] | None
  uses: dict[str, int]

  @property
  def sizes(self) -> dict[str, int]:
    """The number of weights of each sparsified layer."""
    return {name: mask.size for name, mask in self.masks.items()}

  @property
  def live(self) -> dict[str, int]:
    """The number of live weights of each sparsified layer, at the checkpoint."""
    return {name: int(mask.sum()) for name, mask in self.masks.items()}


def read(
  workdirs: Sequence[pathlib.Path | str], say: Callable[[str], None] = lambda line: None
) -> list[Found]:
  """Reads runs from their directories, which are not changed.

  Args:
    workdirs: directories of runs, or folders that contain such directories, as created
      by `compare.py`. Other folders in them are ignored.
    say: called with one line per run.

  Returns:
    The runs in the given order, without duplicates.

  Raises:
    WorkdirError: a directory contains no run, or there are more than `MOST` runs.
  """
  paths: list[pathlib.Path] = []
  for given in workdirs:
    root = pathlib.Path(given).expanduser().resolve()
    if (root / "config.json").exists():
      inside = [root]
    else:
      inside = sorted(p.parent for p in root.glob("**/config.json"))
    inside = [p for p in inside if _is_run(p)]
    if not inside:
      raise WorkdirError(
        f"workdir must hold a run (config.json and {METRICS_FILE}) or folders of runs;"
        f" got {root}"
      )
    paths += inside
  paths = list(dict.fromkeys(paths))
  if len(paths) > MOST:
    raise WorkdirError(
      f"a report must be of at most {MOST} runs; got {len(paths)}. Name those to show."
    )
  found = []
  for path, name in zip(paths, names(paths), strict=True):
    say(f"Reading {path}")
    found.append(_read(path, name))
  return found


def names(paths: Sequence[pathlib.Path]) -> list[str]:
  """Returns short names of paths, without their common leading and trailing parts.

  Args:
    paths: absolute paths, all different.

  Returns:
    One name per path.

  Example:
    >>> names([pathlib.Path("/runs/rigl/seed=0"), pathlib.Path("/runs/set/seed=0")])
    ['rigl', 'set']
    >>> names([pathlib.Path("/runs/rigl/seed=0")])
    ['seed=0']
  """
  if len(paths) == 1:
    return [paths[0].name]
  parts = [list(path.parts) for path in paths]
  while all(parts) and len({p[0] for p in parts}) == 1:
    parts = [p[1:] for p in parts]
  while all(len(p) > 1 for p in parts) and len({p[-1] for p in parts}) == 1:
    parts = [p[:-1] for p in parts]
  return ["/".join(p) or path.name for p, path in zip(parts, paths, strict=True)]


def costs(run: Found) -> tuple[float, float] | None:
  """Returns the `estimate_costs` of a run, or None if they are unknown."""
  history = cost_history(run.records)
  if not history or not run.masks or not set(history[0]) <= set(run.uses):
    return None
  if run.config["method"] not in METHODS:
    return None
  return estimate_costs(history, run.uses, run.sizes, run.config["method"])


def _is_run(path: pathlib.Path) -> bool:
  """Returns whether a directory was written by `train_and_evaluate`.

  Directories of other experiments are told apart by the fields of their configs.
  """
  try:
    config = json.loads((path / "config.json").read_text())
  except (OSError, ValueError):
    return False
  fields = {"dataset", "method", "model", "density"}
  return (path / METRICS_FILE).exists() and fields <= set(config)


def _read(path: pathlib.Path, name: str) -> Found:
  config = json.loads((path / "config.json").read_text())
  step, arrays = _arrays(path)
  if config.get("num_seeds", 1) > 1:
    arrays = {key: x[0] for key, x in arrays.items() if x.ndim}
  noted = read_environment(path)
  params = _matching(_PARAM, arrays)
  masks = {k: m for k, m in _matching(_MASK, arrays).items() if m.dtype == bool}
  image_shape, uses = _uses(config, noted)
  return Found(
    name=name,
    path=path,
    config=config,
    records=read_metrics(path),
    summary=_json(path / RESULT_FILE),
    environment=noted,
    step=step,
    params=params,
    # In the order of the params.
    masks={k: masks[k] for k in params if k in masks},
    model_state=_matching(_STATE, arrays),
    image_shape=image_shape,
    uses=uses,
  )


def _json(path: pathlib.Path) -> dict[str, Any]:
  return json.loads(path.read_text()) if path.exists() else {}


def _matching(pattern: re.Pattern, arrays: dict[str, Any]) -> dict[str, np.ndarray]:
  found = ((pattern.fullmatch(key), x) for key, x in arrays.items())
  return {match[1]: x for match, x in found if match}


def _arrays(path: pathlib.Path) -> tuple[int | None, dict[str, np.ndarray]]:
  """Returns the step and the arrays by path of the newest readable checkpoint.

  `Checkpoints` is not used, because it needs the training program, and may remove files
  in the directory of a run that is still training.
  """
  folders = [
    p for p in (path / "checkpoints").glob("*/state") if p.parent.name.isdigit()
  ]
  for folder in sorted(folders, key=lambda p: int(p.parent.name), reverse=True):
    try:
      with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = dict(reader.metadata(folder).item_metadata.tree)
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        arguments = ocp.args.PyTreeRestore(restore_args=plain)
        arrays = reader.restore(folder, args=arguments)
    except Exception:
      continue
    return int(folder.parent.name), arrays
  return None, {}


def _uses(config, noted) -> tuple[tuple[int, ...] | None, dict[str, int]]:
  shape, classes = noted.get("image_shape"), noted.get("num_classes")
  try:
    if shape is None:
      dataset = data.load(config["dataset"], config["data_dir"])
      shape, classes = dataset.train.images.shape[1:], dataset.num_classes
    kwargs = config["model_kwargs"]
    model = models.create(config["model"], num_classes=classes, **kwargs)
    # Text has one axis, of integer tokens; images have three.
    dtype = "int32" if len(shape) == 1 else "float32"
    example = jax.ShapeDtypeStruct((1, *shape), dtype)
    return tuple(shape), kernel_uses(model, example)
  except Exception as e:  # write the page without this column
    logging.warning("Multiply-adds are missing: %s: %s", type(e).__name__, e)
    return (tuple(shape) if shape else None), {}
