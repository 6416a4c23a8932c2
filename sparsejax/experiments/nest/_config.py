"""The fields of a grow-and-prune run, with their defaults and rules."""

import math
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from sparsejax import growth
from sparsejax.training import ConfigError, data, fill_config
from sparsejax.training.data import get_augmentation


def default_config() -> config_dict.ConfigDict:
  """Returns every field of a synthesis at its default, ready to be changed.

  Returns:
    A `ConfigDict`, locked: a misspelt field raises where it is set.
  """
  c = config_dict.ConfigDict()
  # Data, as in `training.default_config`.
  c.dataset = "digits"
  c.data_dir = ""
  c.validation_fraction = 0.1  # of the training images: errors are taken on them; at 0
  # on the training images, as they are distorted
  c.augmentation = "none"
  c.inputs = "standardized"  # or "unit": in [0, 1], so that black pixels give nothing
  # Model: a chain of layers with an attribute `features`, its hidden layers' widths.
  c.model = "mlp"
  c.model_kwargs = config_dict.ConfigDict()
  c.features = (32, 16)  # the capacity in which it grows; doubled where that is full
  # The seed.
  c.width_ratio = 0.5  # of the capacity
  c.density = 0.2  # of the possible connections
  # Growth.
  c.target_error = 5.0  # percent; growth ends there
  c.growth_rounds = 4  # at most
  c.growth_epochs = 2  # training after each
  c.growth_connections = 0.3  # of the live ones, wake in each
  c.growth_units = ()  # neurons or maps a round, for each hidden layer; () for none
  c.growth_batches = 20  # of 500 images, whose mean gradient is looked at
  c.connections_by = "gradient"  # or "random", the control
  c.units_by = "gradient"  # or "random"
  c.pair_fraction = 0.1  # of the bridging gradients, wired in each new neuron
  c.birth_strength = 0.5  # of a new neuron's weights, of the mean of those there
  c.map_candidates = 16  # random kernels a feature map is chosen from
  # Pruning.
  c.milestones = (300,)  # connections, or one number a layer for each; at each of them
  # the network is fine-tuned
  c.milestone_rounds = (4,)  # pruning rounds on the way there
  c.milestone_units = ()  # for each: inputs, then hidden units; () for any
  c.prune_epochs = 2  # retraining after each
  c.tolerated_error = 100.0  # percent; pruning ends where it cannot be reached again
  c.patience = 1  # further retrainings before that
  c.uses_power = 0.0  # prunes |w| / uses^power: 0.5 for multiply-adds
  c.tune_epochs = 4  # at a milestone
  # Optimizer: Adam, its rate a cosine in each round.
  c.learning_rate = 2e-3
  c.final_rate = 0.25  # at the end of a round, of learning_rate
  c.weight_decay = 0.0
  c.warm_up_steps = 10  # of a weight that wakes
  c.batch_size = 128
  c.seed = 0
  return c.lock()


_POSITIVE = (
  "growth_epochs",
  "growth_rounds",
  "growth_batches",
  "map_candidates",
  "prune_epochs",
  "tune_epochs",
  "warm_up_steps",
  "batch_size",
)
_FRACTIONS = ("width_ratio", "density", "pair_fraction", "final_rate")


def complete(config: Mapping[str, Any]) -> Any:
  """Fills a config up with the defaults and checks it.

  Args:
    config: some or all fields of `default_config`, as a `ConfigDict` or a dict.

  Returns:
    All fields, a `FrozenConfigDict`.

  Raises:
    ConfigError: naming the field, its rule and its value.

  Example:
    >>> complete({"density": 0.1}).density
    0.1
  """
  full = fill_config(default_config(), config)
  if full.dataset not in (*data.NAMES, *data.NOT_IN_MEMORY):
    raise ConfigError(
      f"dataset must be one of {', '.join(data.NAMES)}; got {full.dataset!r}"
    )
  get_augmentation(full.augmentation)
  for name in _POSITIVE:
    _require(full, name, full[name] >= 1, "at least 1")
  for name in _FRACTIONS:
    _require(full, name, 0 < full[name] <= 1, "in (0, 1]")
  _require(full, "validation_fraction", 0 <= full.validation_fraction < 1, "in [0, 1)")
  for name in ("learning_rate", "birth_strength"):
    _require(full, name, 0 < full[name] < math.inf, "above 0 and finite")
  for name in ("growth_connections", "weight_decay", "patience", "uses_power"):
    _require(full, name, full[name] >= 0, "at least 0")
  _require(full, "seed", 0 <= full.seed < 2**31, "in [0, 2**31)")
  inputs = full.inputs in ("standardized", "unit")
  _require(full, "inputs", inputs, "standardized or unit")
  for name in ("connections_by", "units_by"):
    _require(full, name, full[name] in ("gradient", "random"), "gradient or random")
  hidden = len(full.features)
  _require(
    full,
    "growth_units",
    len(full.growth_units) in (0, hidden),
    f"() or {hidden} numbers, one a hidden layer",
  )
  _require(
    full,
    "milestone_rounds",
    len(full.milestone_rounds) == len(full.milestones),
    f"of {len(full.milestones)} numbers, as milestones",
  )
  layers = [n for n in full.milestones if isinstance(n, tuple)]
  _require(
    full,
    "milestones",
    all(len(n) == hidden + 1 and all(m > 0 for m in n) for n in layers),
    f"of numbers or, for each layer, {hidden + 1} above 0",
  )
  units = full.milestone_units
  _require(
    full,
    "milestone_units",
    len(units) in (0, len(full.milestones))
    and all(len(u) in (0, hidden + 1) for u in units),
    f"() or, for each milestone, {hidden + 1} numbers",
  )
  try:
    growth.check_plan(plan(full))
  except ValueError as e:
    raise ConfigError(str(e)) from e
  return config_dict.FrozenConfigDict(full)


def plan(config: Any) -> growth.Plan:
  """Returns the plan of a complete config."""
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


def _require(config: Any, name: str, holds: bool, rule: str) -> None:
  if not holds:
    raise ConfigError(f"{name} must be {rule}; got {config[name]!r}")
