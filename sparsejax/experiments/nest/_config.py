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
  data,
  empty_dict,
  fill_config,
  to_config_dict,
)
from sparsejax.training.data import get_augmentation


@dataclasses.dataclass(frozen=True)
class NestConfig:
  """A complete config, as `complete` returns it; users write a `ConfigDict`."""

  # Data, as in `training.default_config`.
  dataset: str = "digits"
  data_dir: str = ""
  validation_fraction: float = 0.1  # fraction of the training images that errors are
  # measured on; 0 to measure them on the augmented training images
  augmentation: str = "none"
  inputs: str = "standardized"  # or "unit": scaled to [0, 1]: black pixels are 0
  # Model: a chain of layers with an attribute `features`, its hidden layers' widths.
  model: str = "mlp"
  model_kwargs: Mapping[str, Any] = empty_dict()
  features: tuple[int, ...] = (32, 16)  # the initial capacity; doubled when no unused
  # units are left
  # The seed.
  width_ratio: float = 0.5  # fraction of the capacity's units
  density: float = 0.2  # fraction of the possible connections
  # Growth.
  target_error: float = 5.0  # percent; growth ends at this error
  growth_rounds: int = 4  # at most
  growth_epochs: int = 2  # training epochs per round
  growth_connections: float = 0.3  # grown per round, as a fraction of the live ones
  growth_units: tuple[int, ...] = ()  # neurons or maps grown per round, per hidden
  # layer; () for none
  growth_batches: int = 20  # batches of 500 images per mean gradient
  connections_by: str = "gradient"  # or "random", the control
  units_by: str = "gradient"  # or "random"
  pair_fraction: float = 0.1  # of the bridging gradients connected per new neuron
  birth_strength: float = 0.5  # magnitude of a new neuron's weights, relative to the
  # layer's
  map_candidates: int = 16  # random kernels that a feature map is chosen from
  # Pruning.
  milestones: tuple[int | tuple[int, ...], ...] = (300,)  # sizes at which the network
  # is fine-tuned: connections, of the whole network or a tuple of one number per layer
  milestone_rounds: tuple[int, ...] = (4,)  # pruning rounds before each milestone
  milestone_units: tuple[tuple[int, ...], ...] = ()  # per milestone: inputs, then
  # hidden units; () for any
  prune_epochs: int = 2  # training epochs per pruning round
  tolerated_error: float = 100.0  # percent; pruning ends if the error stays above it
  patience: int = 1  # how often a network is retrained before pruning ends
  uses_power: float = 0.0  # ranks weights by |w| / uses^power; 0.5 saves multiply-adds
  tune_epochs: int = 4  # training epochs at a milestone
  # Optimizer: Adam, with a cosine learning rate schedule per round.
  learning_rate: float = 2e-3
  final_rate: float = 0.25  # learning rate at the end of a round, relative to its start
  weight_decay: float = 0.0
  warm_up_steps: int = 10  # warm-up of a grown weight, in steps
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
    f"one of {', '.join(data.NAMES)}",
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
  "seed": (lambda v: 0 <= v < 2**31, "in [0, 2**31)"),
  "inputs": (lambda v: v in ("standardized", "unit"), "standardized or unit"),
  "connections_by": _SOURCE,
  "units_by": _SOURCE,
}


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
  )
