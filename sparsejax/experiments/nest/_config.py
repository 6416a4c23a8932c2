"""The config of a grow-and-prune run: its fields, defaults and rules."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from sparsejax import growth
from sparsejax.training import (
  ConfigError,
  Rules,
  check_rules,
  config_to_json,
  data,
  describe_config,
  empty_dict,
  fill_config,
  to_config_dict,
)
from sparsejax.training.data import get_augmentation


@dataclasses.dataclass(frozen=True)
class NestConfig:
  """A complete config, as `complete` returns it; users write a `ConfigDict`.

  Attributes:
    dataset: the data set to train on.
    data_dir: a TFDS folder; if empty, `TFDS_DATA_DIR`, then the default of TFDS.
    validation_fraction: the fraction of the training images that errors are measured
      on; 0 to measure them on the augmented training images.
    augmentation: the augmentation of training images.
    inputs: "unit" scales to [0, 1], so that black pixels are 0.
    image_size: the height and width of images that are read as needed (imagenet2012);
      other data sets have their own.
    model: a chain of layers whose attribute `features` has the hidden widths.
    model_kwargs: arguments of the model.
    features: the initial capacity; doubled when no unused units are left.
    width_ratio: the units of the seed, as a fraction of the capacity.
    density: the connections of the seed, as a fraction of the possible ones.
    target_error: percent; growth ends at this error.
    growth_rounds: rounds of growth, at most.
    growth_epochs: training epochs per round of growth.
    growth_connections: connections grown per round, as a fraction of the live ones.
    growth_units: neurons or maps grown per round and hidden layer; () for none.
    growth_batches: batches of 500 images per mean gradient.
    connections_by: how connections are chosen; random is the control.
    units_by: how neurons and maps are chosen; random is the control.
    pair_fraction: the fraction of bridging gradients connected per new neuron.
    birth_strength: the magnitude of a new neuron's weights, relative to its layer's.
    map_candidates: random kernels that a feature map is chosen from.
    milestones: sizes at which the network is fine-tuned: connections of the whole
      network, or a tuple of one number per layer.
    milestone_rounds: pruning rounds before each milestone.
    milestone_units: per milestone: inputs, then hidden units; () for any.
    prune_epochs: training epochs per pruning round.
    tolerated_error: percent; pruning ends if the error stays above it.
    patience: how often a network is retrained before pruning ends.
    uses_power: ranks weights by |w| / uses^power; 0.5 saves multiply-adds.
    area_rounds: rounds of partial-area convolution at each milestone, before it is
      fine-tuned; 0 for none. In each, convolutions lose the positions at which an input
      map contributes least to a feature map, and the network is retrained for
      prune_epochs; if the error stays above tolerated_error, the last round is undone.
    area_fraction: the fraction of the output positions removed per round, for each pair
      of an input map and a feature map.
    tune_epochs: training epochs at a milestone.
    learning_rate: the learning rate of Adam; a cosine per round.
    final_rate: the learning rate at the end of a round, relative to its start.
    weight_decay: decoupled weight decay.
    warm_up_steps: steps in which a grown weight is warmed up.
    batch_size: examples per step.
    seed: the seed of weights and data order.
  """

  # Data, as in `training.default_config`.
  dataset: str = "digits"
  data_dir: str = ""
  validation_fraction: float = 0.1
  augmentation: str = "none"
  inputs: str = "standardized"
  image_size: int = 224
  # Model: a chain of layers with an attribute `features`, its hidden layers' widths.
  model: str = "mlp"
  model_kwargs: Mapping[str, Any] = empty_dict()
  features: tuple[int, ...] = (32, 16)
  # The seed.
  width_ratio: float = 0.5
  density: float = 0.2
  # Growth.
  target_error: float = 5.0
  growth_rounds: int = 4
  growth_epochs: int = 2
  growth_connections: float = 0.3
  growth_units: tuple[int, ...] = ()
  growth_batches: int = 20
  connections_by: str = "gradient"
  units_by: str = "gradient"
  pair_fraction: float = 0.1
  birth_strength: float = 0.5
  map_candidates: int = 16
  # Pruning.
  milestones: tuple[int | tuple[int, ...], ...] = (300,)
  milestone_rounds: tuple[int, ...] = (4,)
  milestone_units: tuple[tuple[int, ...], ...] = ()
  prune_epochs: int = 2
  tolerated_error: float = 100.0
  patience: int = 1
  uses_power: float = 0.0
  area_rounds: int = 0
  area_fraction: float = 0.01
  tune_epochs: int = 4
  # Optimizer: Adam, with a cosine learning rate schedule per round.
  learning_rate: float = 2e-3
  final_rate: float = 0.25
  weight_decay: float = 0.0
  warm_up_steps: int = 10
  batch_size: int = 128
  seed: int = 0


def default_config() -> config_dict.ConfigDict:
  """Returns a config with all fields at their defaults.

  Returns:
    A locked `ConfigDict`, in which setting a misspelled field raises an error.
  """
  return to_config_dict(NestConfig())


_POSITIVE = lambda v: v >= 1, "at least 1"
_FRACTION = lambda v: 0 < v <= 1, "in (0, 1]"
_FINITE = lambda v: 0 < v < math.inf, "above 0 and finite"
_NOT_NEGATIVE = lambda v: v >= 0, "at least 0"
_SOURCE = lambda v: v in ("gradient", "random"), "gradient or random"
_RULES: Rules = {
  "dataset": (
    lambda v: v in (*data.NAMES, *data.NOT_IN_MEMORY),
    f"one of {', '.join((*data.NAMES, *data.NOT_IN_MEMORY))}",
  ),
  "growth_epochs": _POSITIVE,
  "growth_rounds": _POSITIVE,
  "growth_batches": _POSITIVE,
  "map_candidates": _POSITIVE,
  "prune_epochs": _POSITIVE,
  "tune_epochs": _POSITIVE,
  "warm_up_steps": _POSITIVE,
  "batch_size": _POSITIVE,
  "width_ratio": _FRACTION,
  "density": _FRACTION,
  "pair_fraction": _FRACTION,
  "final_rate": _FRACTION,
  "validation_fraction": (lambda v: 0 <= v < 1, "in [0, 1)"),
  "learning_rate": _FINITE,
  "birth_strength": _FINITE,
  "growth_connections": _NOT_NEGATIVE,
  "weight_decay": _NOT_NEGATIVE,
  "patience": _NOT_NEGATIVE,
  "uses_power": _NOT_NEGATIVE,
  "area_rounds": _NOT_NEGATIVE,
  "area_fraction": (lambda v: 0 < v < 1, "in (0, 1)"),
  "image_size": _POSITIVE,
  "seed": (lambda v: 0 <= v < 2**31, "in [0, 2**31)"),
  "inputs": (lambda v: v in ("standardized", "unit"), "standardized or unit"),
  "connections_by": _SOURCE,
  "units_by": _SOURCE,
}


def config_help() -> str:
  """Returns a help text on all fields of a config, for the command line."""
  return describe_config(NestConfig, _RULES)


def complete(config: Mapping[str, Any] | NestConfig) -> NestConfig:
  """Completes a config with the defaults and validates it.

  Args:
    config: some or all fields of `default_config`, as a `ConfigDict` or a dict; or a
      complete config, which is returned.

  Returns:
    All fields, frozen.

  Raises:
    ConfigError: a field is invalid; the message names the field, its rule and its
      value.

  Example:
    >>> complete({"density": 0.1}).density
    0.1
  """
  if isinstance(config, NestConfig):
    return config
  full = fill_config(NestConfig, config)
  check_rules(full, _RULES)
  get_augmentation(full.augmentation)
  # Fields whose lengths must agree with the layers or with the milestones.
  hidden, count = len(full.features), len(full.milestones)
  check_rules(
    full,
    {
      "growth_units": (
        lambda v: len(v) in (0, hidden),
        f"() or {hidden} numbers, one per hidden layer",
      ),
      "milestone_rounds": (
        lambda v: len(v) == count,
        f"of {count} numbers, as milestones",
      ),
      "milestones": (
        lambda v: all(
          len(n) == hidden + 1 and all(m > 0 for m in n)
          for n in v
          if isinstance(n, tuple)
        ),
        f"of numbers or, for each layer, {hidden + 1} above 0",
      ),
      "milestone_units": (
        lambda v: len(v) in (0, count) and all(len(u) in (0, hidden + 1) for u in v),
        f"() or, for each milestone, {hidden + 1} numbers",
      ),
    },
  )
  try:
    growth.check_plan(plan(full))
  except ValueError as e:
    raise ConfigError(str(e)) from e
  return full


def stamp(config: NestConfig) -> dict[str, Any]:
  """Returns the JSON values that identify a run, from a complete config.

  Fields that were added later are left out at their defaults, so that a run that was
  started before them can be resumed.
  """
  default, added = NestConfig(), ("area_rounds", "area_fraction", "image_size")
  same = [name for name in added if getattr(config, name) == getattr(default, name)]
  values = config_to_json(config)
  return {name: value for name, value in values.items() if name not in same}


def plan(config: NestConfig) -> growth.Plan:
  """Returns the `growth.Plan` of a complete config."""
  units = config.milestone_units or ((),) * len(config.milestones)
  milestones = zip(config.milestones, config.milestone_rounds, units, strict=True)
  return growth.Plan(
    target_error=config.target_error,
    growth_rounds=config.growth_rounds,
    growth_epochs=config.growth_epochs,
    milestones=tuple(growth.Milestone(n, r, tuple(u)) for n, r, u in milestones),
    prune_epochs=config.prune_epochs,
    tolerated_error=config.tolerated_error,
    patience=config.patience,
    tune_epochs=config.tune_epochs,
    floor=config.final_rate,
    area_rounds=config.area_rounds,
  )
