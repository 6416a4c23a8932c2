"""Reading of runs from their directories, for reports."""

import json
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from sparsejax.training import (
  METHODS,
  METRICS_FILE,
  RESULT_FILE,
  WorkdirError,
  cost_history,
  data,
  estimate_costs,
  model_uses,
  read_environment,
  read_json,
  read_metrics,
)

MOST = 12  # the maximum number of configs on one page, not counting seeds
_SEEDS = ("seed", "num_seeds", "data_dir")  # may differ between runs that are averaged

_MASK = re.compile(r"opt_state/(?:.*/)?masks/(.+)")
_PARAM = re.compile(r"params/(.+)")


class Found(NamedTuple):
  """A run as read from its directory; arrays are those of the first seed.

  Of runs whose configs differ in their seeds alone, only the first has arrays.

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
    WorkdirError: a directory contains no run, or there are more than `MOST` configs.
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
  configs = [json.loads((path / "config.json").read_text()) for path in paths]
  keys = [_key(config) for config in configs]
  if len(set(keys)) > MOST:
    raise WorkdirError(
      f"a report must be of at most {MOST} runs, not counting their seeds; got"
      f" {len(set(keys))}. Name those to show."
    )
  found = []
  for i, (path, name) in enumerate(zip(paths, names(paths), strict=True)):
    say(f"Reading {path}")
    found.append(_read(path, name, configs[i], with_arrays=keys[i] not in keys[:i]))
  return found


def group(runs: Sequence[Found]) -> list[list[Found]]:
  """Groups runs whose configs differ in their seeds alone, and names the groups.

  Args:
    runs: the runs from `read`.

  Returns:
    The groups in the order of their first runs. All runs of a group have its name, as
    do those of a config that is there once.
  """
  groups: dict[str, list[Found]] = {}
  for run in runs:
    groups.setdefault(_key(run.config), []).append(run)
  found = list(groups.values())
  paths = [pathlib.Path(os.path.commonpath([r.path for r in runs])) for runs in found]
  # A comparison has a folder per cell, with one folder in it per run of some seeds.
  shorter = [p.parent if p.name.startswith("seed") else p for p in paths]
  if len(found) > 1 and len(set(shorter)) == len(found):
    paths = shorter
  elif len(set(paths)) < len(found):
    paths = [runs[0].path for runs in found]
  return [
    [run._replace(name=name) for run in runs]
    for runs, name in zip(found, names(paths), strict=True)
  ]


def optional(what: str, compute: Callable[[], Any], default: Any = None) -> Any:
  """Returns `compute()`, or a default and a warning in the log if it fails.

  Parts of a page that may fail on a model that nobody foresaw never lose the page.
  """
  try:
    return compute()
  except Exception as e:
    logging.warning("%s are missing: %s: %s", what, type(e).__name__, e)
    return default


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
  """Returns `(forward, training)` from `estimate_costs`; None if they are unknown."""
  history, method = cost_history(run.records), run.config["method"]
  known = history and run.masks and set(history[0]) <= set(run.uses)
  if not known or method not in METHODS:
    return None
  return optional(
    "Multiply-adds", lambda: estimate_costs(history, run.uses, run.sizes, method)
  )


def live_blocks(run: Found) -> float | None:
  """Returns live blocks / blocks at the checkpoint; None without a block structure."""
  if run.config.get("structure") != "block" or not run.masks:
    return None
  side, live, count = run.config["block"], 0, 0
  for mask in run.masks.values():
    *lead, inputs, outputs = mask.shape
    cut = mask.reshape(*lead, inputs // side, side, outputs // side, side)
    blocks = cut.any((-3, -1))
    live, count = live + int(blocks.sum()), count + blocks.size
  return live / count


def _key(config: dict[str, Any]) -> str:
  """Returns what runs of different seeds have in common."""
  rest = {name: value for name, value in config.items() if name not in _SEEDS}
  return json.dumps(rest, sort_keys=True)


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


def _read(
  path: pathlib.Path, name: str, config: dict[str, Any], with_arrays: bool
) -> Found:
  step, arrays = _arrays(path) if with_arrays else (None, {})
  if config.get("num_seeds", 1) > 1:
    arrays = {key: x[0] for key, x in arrays.items() if x.ndim}
  noted = read_environment(path)
  params = _matching(_PARAM, arrays)
  masks = {k: m for k, m in _matching(_MASK, arrays).items() if m.dtype == bool}
  image_shape, uses = _uses(config, noted) if with_arrays else (None, {})
  return Found(
    name=name,
    path=path,
    config=config,
    records=read_metrics(path),
    summary=read_json(path / RESULT_FILE) if (path / RESULT_FILE).exists() else {},
    environment=noted,
    step=step,
    params=params,
    # In the order of the params.
    masks={k: masks[k] for k in params if k in masks},
    image_shape=image_shape,
    uses=uses,
  )


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

  def compute():
    nonlocal shape, classes
    if shape is None:
      dataset = data.load(config["dataset"], config["data_dir"])
      shape, classes = dataset.train.images.shape[1:], dataset.num_classes
    return model_uses(config["model"], config["model_kwargs"], shape, classes)[0]

  uses = optional("Multiply-adds", compute, {})
  return (tuple(shape) if shape else None), uses
