"""Builds the model, data, optimizer and compiled functions of a config."""

import inspect
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from sparsejax import models
from sparsejax.core import named_leaves
from sparsejax.training import (
  _at_initialization,
  _errors,
  _methods,
  _optimizers,
  _program,
  _step,
  data,
)
from sparsejax.training._methods import METHODS
from sparsejax.training.config import TrainConfig, complete, total_steps
from sparsejax.training.data import _augment, _stream
from sparsejax.training.parallel import _mesh
from sparsejax.transforms import UpdateSchedule


class Run(NamedTuple):
  """A complete config and the objects built from it.

  Attributes:
    config: all fields, frozen and validated.
    dataset: the splits, in host memory or as streams.
    model: the flax module.
    program: the jitted functions; each is compiled at its first call.
    find_masks: the mask finder from `mask_finder`; None if masks are drawn.
    schedule: the steps in which masks are updated.
    seeds: int32 (num_seeds,).
    steps_per_epoch: full batches per epoch.
    total_steps: steps of the whole run.
    layout: the device mesh and its sharding rules; None for one device.
  """

  config: TrainConfig
  dataset: data.Dataset
  model: Any
  program: _program.Program
  find_masks: Any
  schedule: UpdateSchedule
  seeds: np.ndarray
  steps_per_epoch: int
  total_steps: int
  layout: _mesh.Layout | None = None


class Observation(NamedTuple):
  """Counts read from an optimizer state, each () or (num_seeds,).

  Attributes:
    live: live weights per sparsified layer, by the layer's path.
    density: live weights / weights, over all sparsified layers.
    skipped_steps: steps skipped because the gradient was not finite.
    stuck_steps: skipped steps in a row, up to and including the last step.
    skipped_mask_updates: mask updates skipped because the scores were not finite.
    explored: weights that were ever live / weights; None if it is not tracked.
  """

  live: dict[str, Any]
  density: Any
  skipped_steps: Any
  stuck_steps: Any
  skipped_mask_updates: Any
  explored: Any = None


class Turnover(NamedTuple):
  """The difference between the masks of two steps; int32, () or (num_seeds,).

  Attributes:
    dropped: the number of weights that were live and are now masked.
    grown: the number of weights that were masked and are now live.
    masks: the later masks, copied, because the next step donates its state.
  """

  dropped: Any
  grown: Any
  masks: Any


def prepare(config: Mapping[str, Any] | TrainConfig) -> Run:
  """Validates a config, loads its data and builds its program.

  The model and the optimizer are traced, so that most faults of a config are found
  here. Nothing is trained or written.

  Args:
    config: some or all fields of `default_config`.

  Returns:
    A `Run`.

  Raises:
    ConfigError: if a field breaks a rule, or the fields do not fit together.
    DatasetNotFoundError: if the data set is not on this machine.
  """
  # The config and the devices.
  c = complete(config)
  layout = _mesh.make_layout(
    **vars(c.mesh), batch_size=c.batch_size, num_seeds=c.num_seeds
  )
  # The data; `centering` sets the mean and std that normalize the images.
  dataset = data.load(c.dataset, c.data_dir, c.validation_fraction)
  if dataset.mean is None:
    _check_text(c)
  dataset = data.CENTERINGS[c.centering](dataset)
  examples = len(dataset.train.labels)
  if isinstance(dataset.train, _stream.Stream) and c.num_seeds > 1:
    raise _errors.ConfigError(
      f"num_seeds must be 1 for {c.dataset}, which is read as needed; got {c.num_seeds}"
    )
  if c.batch_size > examples:
    raise _errors.ConfigError(
      f"batch_size must be at most the {examples} training images of {c.dataset};"
      f" got {c.batch_size}"
    )
  # An epoch drops the examples that do not fill a batch.
  steps_per_epoch = examples // c.batch_size
  steps = total_steps(c, examples)
  try:
    model = models.create(
      c.model,
      num_classes=dataset.num_classes,
      **c.model_kwargs,
      **_products(c),
    )
  except (TypeError, ValueError, KeyError) as e:
    raise _errors.ConfigError(f"model {c.model!r}: {e}") from e
  seeds = np.arange(c.num_seeds, dtype=np.int32) + np.int32(c.seed)
  # Masks found before the first step (SNIP, GraSP, SynFlow); None for other methods.
  if METHODS[c.method].prunes_at_init and c.pruning_batches > steps_per_epoch:
    raise _errors.ConfigError(
      f"pruning_batches must be at most the {steps_per_epoch} of an epoch;"
      f" got {c.pruning_batches}"
    )
  method, schedule = METHODS[c.method], _optimizers.update_schedule(c, steps)
  find_masks = None
  if method.prunes_at_init:
    fields = {
      "distribution": _at_initialization.distribution(c.distribution),
      "seed": c.seed,
    }
    find_masks = _at_initialization.mask_finder(
      c.method, model, c.density, fields, c.method_kwargs
    )

  # The initial parameters are masked by `init`, except where the masks are found later
  # or the method keeps its parameters dense and masks them in the forward pass only.
  def mask(params, state):
    stacked = c.method_kwargs.get("stacked", False)
    return _at_initialization.masked(params, sj.masks(state), c.rescale_start, stacked)

  try:
    program = _program.make_program(
      model,
      lambda seed: _optimizers.make_tx(c, steps, seed),
      dataset=dataset,
      batch_size=c.batch_size,
      schedule=schedule,
      augment=_augment.get(c.augmentation),
      num_seeds=c.num_seeds if c.num_seeds > 1 else None,
      label_smoothing=c.label_smoothing,
      sparsify_params=None if find_masks or method.forward else mask,
      compute_dtype=c.compute_dtype,
      layout=layout,
      effective=_methods.forward_params_fn(c.method),
      mark=sj.mark_dead if c.execution == "sparse" else None,
    )
    # Tracing takes a moment and reveals shapes or arguments that do not fit together.
    jax.eval_shape(program.init, seeds)
  except (TypeError, ValueError, ArithmeticError) as e:
    # Name the fields that the method's arguments were computed from.
    fields = ""
    if re.search(r"\b(start|end)_step\b", str(e)):
      fields = (
        f" start_step and end_step are start_fraction={c.start_fraction:g} and"
        f" end_fraction={c.end_fraction:g} of the run's {steps} steps."
      )
    raise _errors.ConfigError(
      f"model {c.model!r} with method {c.method!r}: {e}{fields}"
    ) from e
  return Run(
    config=c,
    dataset=dataset,
    model=model,
    program=program,
    find_masks=find_masks,
    schedule=schedule,
    seeds=seeds,
    steps_per_epoch=steps_per_epoch,
    total_steps=steps,
    layout=layout,
  )


def _products(config: TrainConfig) -> dict[str, Any]:
  """Returns the model attributes that make its products skip dead blocks."""
  if config.execution != "sparse":
    return {}
  attributes = inspect.signature(models.MODELS[config.model]).parameters
  pair = (config.block, config.block)
  found = {
    "dot_general": sj.block_dot_general(pair),
    "lowering": sj.block_conv_general_dilated(pair),
  }
  found = {name: value for name, value in found.items() if name in attributes}
  if config.model == "vanilla_cnn":
    found = {}  # its stack of convolutions has its own lowerings
  if not found:
    raise ValueError("execution must be dense for it: its products are its own")
  return found


def _check_text(config: TrainConfig) -> None:
  """Raises if a field of the config applies to images only."""
  for name, only in (("centering", "channel"), ("augmentation", "none")):
    value = getattr(config, name)
    if value != only:
      raise _errors.ConfigError(f"{name} must be {only!r} for text; got {value!r}")
  if config.method == "synflow":
    raise _errors.ConfigError(
      "method must not be synflow for text: tokens cannot be all ones"
    )


def target(run: Run) -> _step.TrainState:
  """Returns the run's abstract state, with shardings, for restoring a checkpoint."""
  state = jax.eval_shape(run.program.init, run.seeds)
  return _mesh.with_shardings(run.layout, state)


def start(run: Run, train: data.Split) -> _step.TrainState:
  """Returns the state before the first step.

  For a method that prunes at initialization, this finds the masks and applies them.

  Args:
    run: the `Run` returned by `prepare`.
    train: the training split, on the devices; or a stream.

  Returns:
    The state, on the devices.
  """
  state = run.program.init(run.seeds)
  state = place(state) if run.layout is None else state
  if run.find_masks is None:
    return state
  n = run.config.pruning_batches
  batches = run.program.batches(state, train, n)
  state = _at_initialization.place_masks(
    run.find_masks,
    state,
    batches,
    run.config.rescale_start,
    run.config.method_kwargs.get("stacked", False),
  )
  if run.layout is None:
    return place(state)
  return jax.device_put(state, _mesh.of_state(run.layout, state))


place = _mesh.place


def place_splits(
  dataset: data.Dataset, layout: _mesh.Layout | None = None
) -> tuple[Any, Any, Any]:
  """Puts the splits on the devices, padded for evaluation; returns streams as is."""
  if isinstance(dataset.train, _stream.Stream):
    return dataset[:3]
  shards = layout.shards if layout else 1

  def padded(split: data.Split) -> data.Split:
    return data.pad(split, _program.evaluation_batch(len(split.labels), shards))

  held_out = padded(dataset.validation), padded(dataset.test)
  return place((dataset.train, *held_out), layout)


def named(tree: Any) -> dict[str, Any]:
  """Returns a dict from slash-separated path to leaf."""
  return dict(named_leaves(tree))


@jax.jit
def observe(state: _step.TrainState) -> Observation:
  """Counts live weights, skipped steps and skipped mask updates.

  Args:
    state: the state of one seed, or of several, stacked.

  Returns:
    The counts, as arrays.
  """
  return _observe(state.opt_state, state.key.ndim)


def _observe(opt_state: Any, stacked: int) -> Observation:
  """Counts for an optimizer state; with `stacked`, under `vmap` over the seeds."""
  if stacked:
    return jax.vmap(lambda s: _observe(s, 0))(opt_state)
  masks = named(sj.masks(opt_state))
  live = {path: jnp.sum(mask, dtype=jnp.int32) for path, mask in masks.items()}
  # In float32: an int32 sum over many large layers would overflow.
  total = sum(n.astype(jnp.float32) for n in live.values())
  return Observation(
    live=live,
    density=total / float(sum(mask.size for mask in masks.values())),
    skipped_steps=_most(opt_state, "total_notfinite"),
    stuck_steps=_most(opt_state, "notfinite_count"),
    skipped_mask_updates=sj.skipped_updates(opt_state),
    explored=_explored(opt_state),
  )


def _most(opt_state: Any, counter: str) -> jax.Array:
  """Returns the largest value of a counter: some methods have two inner optimizers."""
  values = [value for _, value in optax.tree.get_all_with_path(opt_state, counter)]
  return jnp.max(jnp.stack(values))


def _explored(opt_state: Any) -> Any:
  try:
    return sj.exploration_rate(opt_state)
  except ValueError:  # it is not tracked
    return None


@jax.jit
def turnover(state: _step.TrainState, before: Any = None) -> Turnover:
  """Counts the weights dropped and grown since an earlier step.

  dropped = #{i : before_i and not m_i}, grown = #{i : m_i and not before_i}

  Args:
    state: the state of one seed, or of several, stacked.
    before: `masks` of an earlier `Turnover`; None at the start of a run, which gives
      counts of 0.

  Returns:
    The counts and the current masks. A weight that was dropped and grown again in
    between is in neither count.
  """
  masks = jax.tree.map(jnp.copy, sj.masks(state.opt_state))
  seeds = state.key.ndim

  # The number of weights per seed that are live in `old` and masked in `new`.
  def count(old: Any, new: Any) -> Any:
    went = jax.tree.map(lambda o, n: jnp.logical_and(o, ~n), old, new)
    axes = lambda x: tuple(range(seeds, x.ndim))
    counts = [jnp.sum(w, axes(w), dtype=jnp.int32) for w in jax.tree.leaves(went)]
    return sum(counts, jnp.zeros(state.key.shape, jnp.int32))

  old = masks if before is None else before
  return Turnover(count(old, masks), count(masks, old), masks)
