"""What follows from a config before the first step."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from sparsejax import models
from sparsejax.training import (
  _at_initialization,
  _config,
  _errors,
  _methods,
  _optimizers,
  _program,
  _step,
  data,
)
from sparsejax.training._methods import METHODS
from sparsejax.training.data import _augment, _stream
from sparsejax.training.parallel import _mesh


class Run(NamedTuple):
  """A complete config and what it means.

  Attributes:
    config: all fields, frozen and checked.
    dataset: on the host.
    program: compiled on first use.
    find_masks: of `at_initialization.mask_finder`.
    seeds: int32 (num_seeds,).
    steps_per_epoch: full batches of an epoch.
    total_steps: of the whole run.
    layout: the mesh of devices; None for one device.
  """

  config: Any
  dataset: data.Dataset
  program: _program.Program
  find_masks: Any
  seeds: np.ndarray
  steps_per_epoch: int
  total_steps: int
  layout: _mesh.Layout | None = None


class Observation(NamedTuple):
  """Counts from an optimizer state, each () or (num_seeds,).

  Attributes:
    live: live weights of each sparsified layer, by its path.
    density: live weights / weights of all of them.
    skipped_steps: steps whose gradient was not finite.
    stuck_steps: how many of them the last steps were, in a row.
    skipped_mask_updates: mask updates whose scores were not finite.
    explored: weights that were ever live / weights; None where nothing tracks it.
  """

  live: dict[str, Any]
  density: Any
  skipped_steps: Any
  stuck_steps: Any
  skipped_mask_updates: Any
  explored: Any = None


class Turnover(NamedTuple):
  """What two masks of a run differ by; counts int32, () or (num_seeds,).

  Attributes:
    dropped: weights that were live and are not.
    grown: weights that were dead and live now.
    masks: the later ones, in buffers of their own: a step donates its state.
  """

  dropped: Any
  grown: Any
  masks: Any


def prepare(config: Mapping[str, Any]) -> Run:
  """Loads the data and builds the program; checks all that can be checked.

  Args:
    config: some or all fields of `default_config`.

  Returns:
    A `Run`; nothing is trained or written.

  Raises:
    ConfigError: naming the field, its rule and its value.
    DatasetNotFoundError: if the data set is not on this machine.
  """
  c = _config.complete(config)
  layout = _mesh.from_config(c)
  dataset = data.load(c.dataset, c.data_dir, c.validation_fraction)
  if dataset.mean is None:
    _check_text(c)
  if c.centering == "pixel":
    dataset = data.centered(dataset)
  elif c.centering == "none":
    dataset = data.unit(dataset)
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
  steps_per_epoch = examples // c.batch_size
  total_steps = steps_per_epoch * c.num_epochs
  try:
    model = models.create(
      c.model,
      num_classes=dataset.num_classes,
      **c.model_kwargs.to_dict(),
      **_products(c),
    )
  except (TypeError, ValueError, KeyError) as e:
    raise _errors.ConfigError(f"model {c.model!r}: {e}") from e
  seeds = np.arange(c.num_seeds, dtype=np.int32) + np.int32(c.seed)
  if METHODS[c.method].prunes_at_init and c.pruning_batches > steps_per_epoch:
    raise _errors.ConfigError(
      f"pruning_batches must be at most the {steps_per_epoch} of an epoch;"
      f" got {c.pruning_batches}"
    )
  find_masks = _at_initialization.mask_finder(c, model, dataset.train.images.shape[1:])
  method = METHODS[c.method]

  def mask(params, state):
    return _at_initialization.masked(params, sj.masks(state), c.rescale_start)

  try:
    program = _program.make_program(
      model,
      lambda seed: _optimizers.make_tx(c, total_steps, seed),
      dataset=dataset,
      batch_size=c.batch_size,
      due=_optimizers.due(c, total_steps),
      augment=_augment.get(c.augmentation),
      num_seeds=c.num_seeds if c.num_seeds > 1 else None,
      label_smoothing=c.label_smoothing,
      sparsify_params=None if find_masks or method.forward else mask,
      compute_dtype=c.compute_dtype,
      layout=layout,
      effective=_methods.forward_params_fn(c.method),
      mark=sj.mark_dead if c.execution == "sparse" else None,
    )
    # Traces the model and the optimizer: what does not fit shows here, in a moment.
    jax.eval_shape(program.init, seeds)
  except (TypeError, ValueError, ArithmeticError) as e:
    raise _errors.ConfigError(f"model {c.model!r} with method {c.method!r}: {e}") from e
  return Run(
    c, dataset, program, find_masks, seeds, steps_per_epoch, total_steps, layout
  )


def _products(config: Any) -> dict[str, Any]:
  """The model's attributes by which its products skip dead blocks."""
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
    found = {}  # its convolutions are one stack, with lowerings of their own
  if not found:
    raise ValueError("execution must be dense for it: its products are its own")
  return found


def _check_text(config: Any) -> None:
  """Refuses what only images can be given to."""
  for name, only in (("centering", "channel"), ("augmentation", "none")):
    if config[name] != only:
      raise _errors.ConfigError(
        f"{name} must be {only!r} for text; got {config[name]!r}"
      )
  if config.method == "synflow":
    raise _errors.ConfigError(
      "method must not be synflow for text: tokens cannot be all ones"
    )


def target(run: Run) -> _step.TrainState:
  """Returns a state of the run without its values, to restore one from a checkpoint."""
  state = jax.eval_shape(run.program.init, run.seeds)
  return _mesh.with_shardings(run.layout, state)


def start(run: Run, train: data.Split) -> _step.TrainState:
  """Returns the state before the first step, masks found where the method finds them.

  Args:
    run: of `prepare`.
    train: the training images, placed.

  Returns:
    A state, placed.
  """
  state = run.program.init(run.seeds)
  state = place(state) if run.layout is None else state
  if run.find_masks is None:
    return state
  n = run.config.pruning_batches
  batches = run.program.batches(state, train, n)
  rescale = run.config.rescale_start
  state = _at_initialization.place_masks(run.find_masks, state, batches, rescale)
  if run.layout is None:
    return place(state)
  return jax.device_put(state, _mesh.of_state(run.layout, state))


place = _mesh.place


def named(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by their slash-separated paths."""
  name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
  return {name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


@jax.jit
def observe(state: _step.TrainState) -> Observation:
  """Counts what is live and what was skipped.

  Args:
    state: of one seed, or stacked over seeds.

  Returns:
    The counts, as arrays.
  """
  return _observe(state.opt_state, state.key.ndim)


def _observe(opt_state: Any, stacked: int) -> Observation:
  if stacked:
    return jax.vmap(lambda s: _observe(s, 0))(opt_state)
  masks = named(sj.masks(opt_state))
  live = {path: jnp.sum(mask, dtype=jnp.int32) for path, mask in masks.items()}
  # In float: a sum over many large layers would overflow 32 bits.
  total = sum(n.astype(jnp.float32) for n in live.values())
  return Observation(
    live=live,
    density=total / float(sum(mask.size for mask in masks.values())),
    skipped_steps=optax.tree.get(opt_state, "total_notfinite"),
    stuck_steps=optax.tree.get(opt_state, "notfinite_count"),
    skipped_mask_updates=sj.skipped_updates(opt_state),
    explored=_explored(opt_state),
  )


def _explored(opt_state: Any) -> Any:
  try:
    return sj.exploration_rate(opt_state)
  except ValueError:  # nothing tracks it
    return None


@jax.jit
def turnover(state: _step.TrainState, before: Any = None) -> Turnover:
  """Counts the weights that were dropped and grown since masks were last looked at.

  dropped = #{i : before_i and not m_i}, grown = #{i : m_i and not before_i}

  Args:
    state: of one seed, or stacked over seeds.
    before: `masks` of an earlier turnover; None at the start of a run.

  Returns:
    The counts. A weight that was dropped and grown again in between is in neither.
  """
  masks = jax.tree.map(jnp.copy, sj.masks(state.opt_state))
  seeds = state.key.ndim

  def count(old: Any, new: Any) -> Any:
    went = jax.tree.map(lambda o, n: jnp.logical_and(o, ~n), old, new)
    axes = lambda x: tuple(range(seeds, x.ndim))
    counts = [jnp.sum(w, axes(w), dtype=jnp.int32) for w in jax.tree.leaves(went)]
    return sum(counts, jnp.zeros(state.key.shape, jnp.int32))

  old = masks if before is None else before
  return Turnover(count(old, masks), count(masks, old), masks)
