"""The model and compiled programs for one set of widths, and a network's costs."""

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
from sparsejax.growth import get_leaf as get
from sparsejax.training import (
  ConfigError,
  Program,
  TrainState,
  arrays_by_path,
  data,
  make_program,
)
from sparsejax.training.data import get_augmentation
from sparsejax.transforms import UpdateSchedule


class Capacity(NamedTuple):
  """The model and the programs for one set of widths.

  Attributes:
    features: the widths of the hidden layers.
    model: the flax module.
    chain: the model's layers, from `growth.layers`.
    program: the training program.
    gradients: the gradient function for growth.
    image: abstract value of one image, with a leading axis of 1.
  """

  features: tuple[int, ...]
  model: Any
  chain: tuple[growth.Layer, ...]
  program: Program
  gradients: Any
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
    program = make_program(
      model,
      lambda seed: _optimizer(config),
      dataset=dataset,
      batch_size=config.batch_size,
      schedule=UpdateSchedule(0, None, every=None),
      augment=get_augmentation(config.augmentation),
    )
    jax.eval_shape(program.init, np.zeros(1, np.int32))
  except (TypeError, ValueError) as e:
    raise ConfigError(f"model {config.model!r}: {e}") from e
  found = _growth.gradients(model, chain, dataset, config.growth_batches)
  image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  return Capacity(features, model, chain, program, found, image)


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
    return capacity.model.apply({"params": params, **state.model_state}, x)

  there = live_parameters(apply, params, masks, capacity.image)
  connections, units = size(capacity, state)
  return {
    "connections": sum(connections),
    "parameters": sizes(params, there).live,
    "multiply_adds": int(flops(apply, params, masks, capacity.image).multiply_adds),
    "units": list(units),
    "live": {name: int(m.sum()) for name, m in arrays_by_path(masks).items()},
  }
