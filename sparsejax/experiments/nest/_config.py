"""The config of a grow-and-prune run: its fields, defaults and rules."""

import math
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from sparsejax import growth
from sparsejax.training import ConfigError, data, fill_config
from sparsejax.training.data import get_augmentation


def default_config() -> config_dict.ConfigDict:
  """Returns a config with all fields at their defaults.

  Returns:
    A locked `ConfigDict`, in which setting a misspelled field raises an error.
  """
  c = config_dict.ConfigDict()
  # Data, as in `training.default_config`.
  c.dataset = "digits"
  c.data_dir = ""
  c.validation_fraction = 0.1  # fraction of the training images that errors are
  # measured on; 0 to measure them on the augmented training images
  c.augmentation = "none"
  c.inputs = "standardized"  # or "unit": scaled to [0, 1], so that black pixels are 0
  # Model: a chain of layers with an attribute `features`, its hidden layers' widths.
  c.model = "mlp"
  c.model_kwargs = config_dict.ConfigDict()
  c.features = (32, 16)  # the initial capacity; doubled when no unused units are left
  # The seed.
  c.width_ratio = 0.5  # fraction of the capacity's units
  c.density = 0.2  # fraction of the possible connections
  # Growth.
  c.target_error = 5.0  # percent; growth ends at this error
  c.growth_rounds = 4  # at most
  c.growth_epochs = 2  # training epochs per round
  c.growth_connections = 0.3  # connections grown per round, as a fraction of the live
  c.growth_units = ()  # neurons or maps grown per round, per hidden layer; () for none
  c.growth_batches = 20  # batches of 500 images per mean gradient
  c.connections_by = "gradient"  # or "random", the control
  c.units_by = "gradient"  # or "random"
  c.pair_fraction = 0.1  # fraction of the bridging gradients connected per new neuron
  c.birth_strength = 0.5  # magnitude of a new neuron's weights, relative to the layer's
  c.map_candidates = 16  # random kernels that a feature map is chosen from
  # Pruning.
  c.milestones = (300,)  # sizes at which the network is fine-tuned: connections, of the
  # whole network or a tuple of one number per layer
  c.milestone_rounds = (4,)  # pruning rounds before each milestone
  c.milestone_units = ()  # per milestone: inputs, then hidden units; () for any
  c.prune_epochs = 2  # training epochs per pruning round
  c.tolerated_error = 100.0  # percent; pruning ends if the error stays above it
  c.patience = 1  # how often a network is retrained before pruning ends
  c.uses_power = 0.0  # ranks weights by |w| / uses^power; 0.5 saves multiply-adds
  c.tune_epochs = 4  # training epochs at a milestone
  # Optimizer: Adam, with a cosine learning rate schedule per round.
  c.learning_rate = 2e-3
  c.final_rate = 0.25  # learning rate at the end of a round, relative to its start
  c.weight_decay = 0.0
  c.warm_up_steps = 10  # warm-up of a grown weight, in steps
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
  """Completes a config with the defaults and validates it.

  Args:
    config: some or all fields of `default_config`, as a `ConfigDict` or a dict.

  Returns:
    All fields, a `FrozenConfigDict`.

  Raises:
    ConfigError: a field is invalid; the message names the field, its rule and its
      value.

  Example:
    >>> complete({"density": 0.1}).density
    0.1
  """
  # The rules of single fields.
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
  # Fields whose lengths must agree with the layers or with the milestones.
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


def _require(config: Any, name: str, holds: bool, rule: str) -> None:
  if not holds:
    raise ConfigError(f"{name} must be {rule}; got {config[name]!r}")
