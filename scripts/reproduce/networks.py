"""Reads trained networks from the directories of their runs."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax import traverse_util

from sparsejax import models
from sparsejax.core import path_string
from sparsejax.experiments.nest import load_milestone, read_milestones
from sparsejax.reports import read_run
from sparsejax.training import WorkdirError, data


class Network(NamedTuple):
  """A trained network at the end of its run.

  Attributes:
    name: name of its model.
    module: the flax module.
    apply: `(params, images) -> logits`, for inference.
    params: pytree of arrays.
    masks: a bool array or None per leaf of the params.
    image_shape: shape of one image.
  """

  name: str
  module: nn.Module
  apply: Callable[[Any, jax.Array], Any]
  params: Any
  masks: Any
  image_shape: tuple[int, ...]


def load(workdir: str | pathlib.Path, milestone: int | None = None) -> Network:
  """Reads a network of scripts/train.py or of scripts/grow_and_prune.py.

  Args:
    workdir: directory of the run; if it has several seeds, the first one is read.
    milestone: index of a milestone of grow_and_prune; the last one by default.

  Raises:
    WorkdirError: there is no such network.
  """
  path = pathlib.Path(workdir)
  kept = len(read_milestones(path))
  if kept or milestone is not None:
    index = kept - 1 if milestone is None else milestone
    if not 0 <= index < kept:
      raise WorkdirError(
        f"milestone must be one of the {kept} of {workdir}, from 0; got {index}"
      )
    module, params, masks, state = load_milestone(path, index)
    config = json.loads((path / "config.json").read_text())
    shape = data.load(config["dataset"], config["data_dir"]).train.images.shape[1:]
    return _network(config["model"], module, _flat(params), _flat(masks), state, shape)
  (run, *_) = read_run([path])
  if not run.params:
    raise WorkdirError(f"workdir must hold a whole checkpoint; got {workdir}")
  name, kwargs = run.config["model"], run.config["model_kwargs"]
  images = data.load(run.config["dataset"], run.config["data_dir"])
  module = models.create(name, num_classes=images.num_classes, **kwargs)
  state = traverse_util.unflatten_dict(run.model_state, sep="/")
  shape = images.train.images.shape[1:]
  return _network(name, module, run.params, run.masks, state, shape)


def _network(
  name: str,
  module: nn.Module,
  params: Mapping[str, Any],
  masks: Mapping[str, Any],
  state: Mapping[str, Any],
  shape: tuple[int, ...],
) -> Network:
  nested = lambda flat: traverse_util.unflatten_dict(dict(flat), sep="/")
  apply = lambda params, x: module.apply({"params": params, **state}, x)
  found = {path: masks.get(path) for path in params}
  return Network(name, module, apply, nested(params), nested(found), tuple(shape))


def _flat(tree: Any) -> dict[str, Any]:
  return {path_string(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}
