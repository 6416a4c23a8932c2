"""The model and compiled programs for one set of widths, and a network's costs."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from sparsejax import growth, models
from sparsejax.analysis.compaction import live_parameters
from sparsejax.analysis.costs import flops, sizes
from sparsejax.experiments.nest import _growth
from sparsejax.experiments.nest._config import NestConfig
from sparsejax.experiments.nest._growth import AREAS
from sparsejax.growth import get_leaf as get
from sparsejax.training import (
  ConfigError,
  Functions,
  Program,
  TrainState,
  arrays_by_path,
  data,
  from_flax,
  make_program,
)
from sparsejax.training.data import get_augmentation
from sparsejax.transforms import UpdateSchedule


class Capacity(NamedTuple):
  """The model and the programs for one set of widths.

  Partial areas are variables of the model, in the collection `AREAS`. As long as all of
  them are whole, `program` trains the network by ordinary convolutions, and then
  `partial` does. Both have the same state.

  Attributes:
    features: the widths of the hidden layers.
    apply: the `apply` of the model's `Functions`, by ordinary convolutions.
    chain: the model's layers, from `growth.layers`.
    program: the training program, by ordinary convolutions.
    partial: the training program by partial areas; None if the config has none.
    gradients: the gradient function for growth.
    contributions: the function that measures contributions, for the pruning of areas;
      None if the config has no partial areas.
    image: abstract value of one image, with a leading axis of 1.
  """

  features: tuple[int, ...]
  apply: Callable[..., Any]
  chain: tuple[growth.Layer, ...]
  program: Program
  partial: Program | None
  gradients: Callable[..., Any]
  contributions: Callable[..., dict[str, jax.Array]] | None
  image: jax.ShapeDtypeStruct


def make(config: NestConfig, dataset: data.Dataset, doublings: int) -> Capacity:
  """Builds a model and its programs, which compile on first use.

  Args:
    config: a complete config.
    dataset: the data set, for shapes and statistics.
    doublings: how often the config's widths are doubled.

  Returns:
    The `Capacity`.

  Raises:
    ConfigError: the model is unknown, or does not fit the images or growth.
  """
  features = tuple(n * 2**doublings for n in config.features)
  shape = dataset.train.images.shape[1:]
  try:
    model = models.create(
      config.model,
      num_classes=dataset.num_classes,
      features=features,
      **config.model_kwargs,
    )
    chain = growth.layers(model, shape)
    functions = from_flax(model)
    if config.area_rounds:
      functions = _with_whole_areas(functions, model, shape)
    program_for = functools.partial(
      make_program,
      make_tx=lambda seed: _optimizer(config),
      dataset=dataset,
      batch_size=config.batch_size,
      schedule=UpdateSchedule(0, None, every=None),
      augment=get_augmentation(config.augmentation),
    )
    program = program_for(functions)
    jax.eval_shape(program.init, np.zeros(1, np.int32))
  except (TypeError, ValueError) as e:
    raise ConfigError(f"model {config.model!r}: {e}") from e
  if config.area_rounds and all(len(layer.shape) == 2 for layer in chain):
    raise ConfigError(
      f"area_rounds must be 0 for {config.model}, which has no convolution; got"
      f" {config.area_rounds}"
    )
  apply, batches = functions.apply, config.growth_batches
  partial = contributions = None
  if config.area_rounds:
    partial = program_for(Functions(functions.init, _use_areas(apply)))
    contributions = _growth.contributions(apply, dataset, batches)
  return Capacity(
    features=features,
    apply=apply,
    chain=chain,
    program=program,
    partial=partial,
    gradients=_growth.gradients(apply, chain, dataset, batches),
    contributions=contributions,
    image=jax.ShapeDtypeStruct((1, *shape), jnp.float32),
  )


def _with_whole_areas(
  functions: Functions, model: Any, shape: tuple[int, ...]
) -> Functions:
  """Adds areas to the variables of a model, which does not use them."""

  def init(key, images):
    params, state = functions.init(key, images)
    return params, {**state, AREAS: growth.whole_areas(model, shape)}

  def apply(params, state, images, key):
    rest, areas = split_areas(state)
    logits, rest = functions.apply(params, rest, images, key)
    return logits, {**rest, AREAS: areas}

  return Functions(init, apply)


def _use_areas(apply: Callable[..., Any]) -> Callable[..., Any]:
  """Returns a function like `apply` that uses the areas among the variables."""

  def apply_partial(params, state, images, key):
    return growth.with_areas(apply, state[AREAS])(params, state, images, key)

  return apply_partial


def split_areas(
  model_state: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
  """Returns a model's other variables, and its areas, `{}` if it has none."""
  rest = {name: x for name, x in model_state.items() if name != AREAS}
  return rest, model_state.get(AREAS, {})


def program_of(capacity: Capacity, state: TrainState) -> Program:
  """Returns the program that trains and evaluates a network."""
  areas = split_areas(state.model_state)[1]
  whole = all(bool(jnp.all(area)) for area in areas.values())
  return capacity.program if whole or not capacity.partial else capacity.partial


def _optimizer(config: NestConfig) -> optax.GradientTransformationExtraArgs:
  def adam(learning_rate):
    return optax.adamw(learning_rate, weight_decay=config.weight_decay)

  inner = optax.inject_hyperparams(adam)(learning_rate=config.learning_rate)
  inner = optax.apply_if_finite(inner, max_consecutive_errors=2**31 - 1)
  return growth.warm_up(sj.static_sparse(inner, density=1.0), config.warm_up_steps)


def size(
  capacity: Capacity, state: TrainState
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Counts each layer's live connections, and the live inputs and hidden units."""
  chain, masks = capacity.chain, sj.masks(state.opt_state)
  _, live = growth.unit_importance(masks, state.params, chain)
  connections = (_growth.connections(get(masks, layer.path)) for layer in chain)
  return tuple(connections), tuple(int(units.sum()) for units in live)


def describe(capacity: Capacity, state: TrainState) -> dict[str, Any]:
  """Returns the sizes and costs of a network as JSON values."""
  masks, params = sj.masks(state.opt_state), state.params

  def apply(params, x):
    return capacity.apply(params, state.model_state, x, None)[0]

  there = live_parameters(apply, params, masks, capacity.image)
  connections, units = size(capacity, state)
  areas = split_areas(state.model_state)[1]
  saved = growth.multiply_adds_removed(areas, there, capacity.chain)
  whole = int(flops(apply, params, masks, capacity.image).multiply_adds)
  record = {
    "connections": sum(connections),
    "parameters": sizes(params, there).live,
    "multiply_adds": whole - saved,
    "units": list(units),
    "live": {name: int(m.sum()) for name, m in arrays_by_path(masks).items()},
  }
  if areas:
    record["areas"] = {name: float(jnp.mean(area)) for name, area in areas.items()}
  return record
