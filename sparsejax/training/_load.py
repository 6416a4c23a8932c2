"""Loads the trained network of a run from its directory."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

import sparsejax as sj
from sparsejax.training import (
  _checkpoint,
  _errors,
  _functions,
  _methods,
  _run,
  _step,
)
from sparsejax.training.config import TrainConfig, from_json

PyTree = Any


class LoadedRun(NamedTuple):
  """A trained network, from `load_run`.

  Attributes:
    model: the flax module.
    apply: `(params, model_state, images) -> logits`, the model in evaluation mode, on
      normalized images, in the dtype that the run computes in.
    normalize: `(images uint8) -> images float32`, as the run normalizes images; for
      text, tokens as int32.
    params: the params of the forward pass: masked weights are exactly zero.
    model_state: the model's other variables, such as running averages; `{}` without.
    masks: bool arrays, True = live; None for leaves that are not sparsified.
    state: the whole `TrainState`. Its params are `params`, except for methods whose
      params stay dense and are masked in the forward pass only.
    config: all fields of the run's config.
    image_shape: the shape of one image, or of one window of a text.
  """

  model: nn.Module
  apply: Callable[[PyTree, PyTree, jax.Array], jax.Array]
  normalize: Callable[[Any], jax.Array]
  params: PyTree
  model_state: PyTree
  masks: PyTree
  state: _step.TrainState
  config: TrainConfig
  image_shape: tuple[int, ...]

  @property
  def opt_state(self) -> PyTree:
    """The state of the optimizer, which includes the masks."""
    return self.state.opt_state

  @property
  def step(self) -> int:
    """The number of updates done."""
    return int(self.state.step)


def load_run(
  workdir: os.PathLike | str, step: int | None = None, seed_index: int = 0
) -> LoadedRun:
  """Loads the network that `train_and_evaluate` trained in a directory.

  The directory is not changed, and the run may still be training. The network is put on
  one device, whatever mesh it was trained on.

  Args:
    workdir: the run's directory.
    step: the step of the checkpoint; None for the newest one.
    seed_index: which of the run's seeds to load, counted from 0.

  Returns:
    A `LoadedRun`.

  Raises:
    WorkdirError: if the directory does not exist, or is not of such a run.
    CheckpointError: if there is no checkpoint, or none of that step, or if it cannot be
      read.
    ConfigError: if `seed_index` is out of range, or if the run was trained by a version
      with other fields.
    DatasetNotFoundError: if the data set, whose statistics normalize the images, is not
      on this machine.

  Example:
    >>> import tempfile
    >>> from sparsejax import training
    >>> workdir = tempfile.mkdtemp()
    >>> config = {"dataset": "digits", "model": "mlp", "batch_size": 64}
    >>> config |= {"num_epochs": 1, "method": "static_sparse", "density": 0.2}
    >>> result = training.train_and_evaluate(config, workdir, verbose=False)
    >>> run = load_run(workdir)
    >>> images = training.data.load("digits").test.images
    >>> logits = run.apply(run.params, run.model_state, run.normalize(images))
    >>> logits.shape, run.step
    ((359, 10), 20)
  """
  path, stamp = _read_config(workdir)
  # The mesh of the run need not exist on this machine.
  config = {**from_json(stamp), "mesh": {}}
  run = _run.prepare(config)
  if not 0 <= seed_index < len(run.seeds):
    raise _errors.ConfigError(
      f"seed_index must be in [0, {len(run.seeds)}), the seeds of the run; got"
      f" {seed_index!r}"
    )
  if not (path / "checkpoints").is_dir():
    raise _errors.CheckpointError(
      f"there is no checkpoint in {path}: its run was stopped before the first one"
    )
  checkpoints = _checkpoint.Checkpoints(path, stamp, read_only=True)
  try:
    state = checkpoints.read(_run.target(run), step).state
  finally:
    checkpoints.close()
  if state.key.ndim:
    one = jax.tree.map(lambda x: x[seed_index], state._replace(step=None))
    state = one._replace(step=state.step)  # all seeds share it
  model = _functions.from_flax(run.model, run.config.compute_dtype)
  return LoadedRun(
    model=run.model,
    apply=lambda params, model_state, x: model.apply(params, model_state, x, None)[0],
    normalize=run.dataset.normalize,
    params=_methods.forward_params_fn(run.config.method)(state.params, state.opt_state),
    model_state=state.model_state,
    masks=sj.masks(state.opt_state),
    state=state,
    config=run.config,
    image_shape=tuple(run.dataset.train.images.shape[1:]),
  )


def _read_config(workdir: os.PathLike | str) -> tuple[pathlib.Path, dict[str, Any]]:
  """Returns the path and the config of a run's directory, or raises WorkdirError."""
  if not isinstance(workdir, str | os.PathLike) or not str(workdir):
    raise _errors.WorkdirError(f"workdir must name a directory; got {workdir!r}")
  path = pathlib.Path(workdir).expanduser().absolute()
  try:
    found = json.loads((path / "config.json").read_text())
  except (OSError, ValueError) as e:
    raise _errors.WorkdirError(
      f"workdir must be the directory of a run, with a config.json; got {path} ({e})"
    ) from e
  kind = ""
  if not isinstance(found, dict) or not {"dataset", "model", "method"} <= set(found):
    kind = "something else"
    if list(path.glob("*/level_*")):
      kind = "a lottery ticket experiment"
    elif "growth_rounds" in found:
      kind = "a synthesis; sparsejax.experiments.nest.load_milestone reads its networks"
  if kind:
    raise _errors.WorkdirError(
      f"workdir must be the directory of a run of train_and_evaluate; {path} is of"
      f" {kind}"
    )
  return path, found
