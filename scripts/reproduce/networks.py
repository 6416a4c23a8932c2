"""Reads trained networks from the directories of their runs."""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax import traverse_util

from sparsejax import growth
from sparsejax.experiments.nest import load_milestone, read_milestones
from sparsejax.training import WorkdirError, data, load_run


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
    TrainingError: there is no such network; see `load_run`.
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
    size = {"image_size": config["image_size"]} if "image_size" in config else {}
    dataset = data.load(config["dataset"], config["data_dir"], **size)
    shape = dataset.train.images.shape[1:]
    run = growth.with_areas(module.apply, state.pop("areas", {}))
    apply = lambda params, x: run({"params": params, **state}, x)
    # Milestones list the masked leaves only.
    flat = traverse_util.flatten_dict(masks)
    masks = {path: flat.get(path) for path in traverse_util.flatten_dict(params)}
    masks = traverse_util.unflatten_dict(masks)
    return Network(config["model"], module, apply, params, masks, tuple(shape))
  run = load_run(path)
  apply = lambda params, x: run.model.apply({"params": params, **run.model_state}, x)
  name, shape = run.config.model, run.image_shape
  return Network(name, run.model, apply, run.params, run.masks, shape)
