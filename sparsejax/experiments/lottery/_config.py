"""The config of a lottery ticket experiment: its fields, defaults and rules."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from sparsejax.lottery import CRITERIA, MASK_ZERO
from sparsejax.training import (
  ConfigError,
  Rules,
  TrainConfig,
  check_rules,
  checked_config,
  config_to_json,
  describe_config,
  empty_dict,
  fill_config,
  to_config_dict,
)
from sparsejax.training import default_config as default_training_config

RESTARTS = ("rewind", "learning_rate", "fine_tune")
CONTROLS = (
  "reinit",
  "reinit_signs",
  "reshuffle",
  "constant",
  "random",
  "random_reinit",
)
# Fields that do not change any trained weights; they may differ between calls with the
# same workdir.
_NOT_THE_RUN = ("rounds", "controls", "one_shot_levels", "together", "train.data_dir")


@dataclasses.dataclass(frozen=True)
class LotteryConfig:
  """A complete config, as `complete` returns it; users write a `ConfigDict`.

  Attributes:
    train: the config of training; `method` and its fields have no effect here.
    rounds: levels in addition to the dense one.
    prune_fraction: the fraction of the live weights to prune per round.
    prune_rates: `{regex of paths: fraction}`, other fractions for some layers.
    scope: whether layers are pruned one by one or together.
    where: regex of the leaves to prune; empty for kernels.
    stacked: regex of the leaves that stack layers along their first axis, each pruned
      by itself; empty for none.
    criterion: the mask criterion, from `sparsejax.lottery.criterion`.
    restart: how training restarts; "learning_rate" and "fine_tune" keep the trained
      weights.
    rewind_step: the step to rewind the weights, or only the schedule, to.
    mask_zero: the values of pruned weights.
    controls: `{name: levels}`, controls to train; levels above `rounds` are ignored.
    one_shot_levels: levels whose densities are also pruned to in one step.
    eval_every: steps between validations; one of them is the early stop.
    measure_every: steps between measurements of the test accuracy.
    last_evaluations: the test accuracy is measured at so many last validations too.
    together: seeds trained by one vmap; 0 for one on a CPU, all elsewhere.
  """

  train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
  # Pruning.
  rounds: int = 5
  prune_fraction: float = 0.2
  prune_rates: Mapping[str, float] = empty_dict()
  scope: str = "layer"
  where: str = ""
  stacked: str = ""
  criterion: str = "large_final"
  # Training after pruning.
  restart: str = "rewind"
  rewind_step: int = 0
  mask_zero: str = "zero"
  controls: Mapping[str, tuple[int, ...]] = empty_dict()
  one_shot_levels: tuple[int, ...] = ()
  # Measurements.
  eval_every: int = 100
  measure_every: int = 1000
  last_evaluations: int = 10
  together: int = 0


def default_config() -> config_dict.ConfigDict:
  """Returns a config with all fields at their defaults.

  Returns:
    A locked `ConfigDict`. `train` contains the fields of `training.default_config`, of
    which `method` and the fields of methods have no effect here.
  """
  return to_config_dict(LotteryConfig())


def conv_net(
  depth: int, learning_rate: float, num_epochs: int, conv_rate: float
) -> config_dict.ConfigDict:
  """Returns the config of the experiments on Conv-2, Conv-4 and Conv-6.

  As in the paper, training uses Adam with batches of 60 CIFAR-10 images, and each round
  prunes 20 % of the dense layers and 10 % of the output layer.

  Args:
    depth: the number of convolutions: 2, 4 or 6.
    learning_rate: the learning rate of Adam.
    num_epochs: epochs per level, of 750 steps each.
    conv_rate: the fraction of the convolutions' live weights pruned per round.

  Returns:
    A `ConfigDict` with the fields of `default_config`.

  References:
    Frankle & Carbin 2019, "The lottery ticket hypothesis", figure 2.

  Example:
    >>> c = conv_net(6, learning_rate=3e-4, num_epochs=40, conv_rate=0.15)
    >>> c.train.model, c.prune_rates.conv
    ('conv6', 0.15)
  """
  train = default_training_config()
  train.dataset = "cifar10"
  train.centering = "none"
  train.model = f"conv{depth}"
  train.model_kwargs = {"initialization": "glorot_normal"}
  train.optimizer = "adam"
  train.learning_rate = learning_rate
  train.lr_schedule = "constant"
  train.momentum = 0.9
  train.weight_decay = 0.0
  train.batch_size = 60
  train.num_epochs = num_epochs
  train.num_seeds = 5
  c = default_config()
  c.train = train
  c.rounds = 20
  c.prune_fraction = 0.2
  c.prune_rates = {"conv": conv_rate, "dense3": 0.1}
  c.controls = {"reinit": tuple(range(2, 21, 2)), "random_reinit": (10, 20)}
  c.one_shot_levels = (5, 10, 15, 20)
  return c


def _levels(value: Any) -> bool:
  return all(type(n) is int and n >= 1 for n in value)


_FRACTION = (lambda v: 0 < v < 1, "in (0, 1)")
_RULES: Rules = {
  "rounds": (lambda v: v >= 0, "at least 0"),
  "prune_fraction": _FRACTION,
  "prune_rates": (
    lambda v: all(type(r) is float and 0 < r < 1 for r in v.values()),
    "a dict of fractions in (0, 1)",
  ),
  "scope": (lambda v: v in ("layer", "global"), "'layer' or 'global'"),
  "criterion": (
    lambda v: v.removesuffix("_same_sign").removesuffix("_diff_sign") in CRITERIA,
    f"one of {', '.join(CRITERIA)}, with or without _same_sign or _diff_sign",
  ),
  "restart": (lambda v: v in RESTARTS, f"one of {', '.join(RESTARTS)}"),
  "mask_zero": (lambda v: v in MASK_ZERO, f"one of {', '.join(MASK_ZERO)}"),
  "rewind_step": (lambda v: v >= 0, "at least 0"),
  "controls": (
    lambda v: all(k in CONTROLS and _levels(n) for k, n in v.items()),
    f"a dict of levels, by names of {', '.join(CONTROLS)}",
  ),
  "one_shot_levels": (_levels, "a tuple of levels, at least 1"),
  "eval_every": (lambda v: v >= 1, "at least 1"),
  "measure_every": (lambda v: v >= 1, "at least 1"),
  "last_evaluations": (lambda v: v >= 1, "at least 1"),
  "together": (lambda v: v >= 0, "at least 0"),
}


def config_help() -> str:
  """Returns a help text on all fields of a config, for the command line."""
  return describe_config(LotteryConfig, _RULES)


def complete(config: Mapping[str, Any] | LotteryConfig) -> LotteryConfig:
  """Completes a config with the defaults and validates every field.

  Args:
    config: some or all fields of `default_config`, as a `ConfigDict` or a dict; or a
      complete config, which is returned.

  Returns:
    All fields, frozen.

  Raises:
    ConfigError: a field is invalid; the message names the field, its rule and its
      value.

  Example:
    >>> complete({"rounds": 3}).rounds
    3
    >>> complete({"prune_fraction": 1.0})
    Traceback (most recent call last):
      ...
    sparsejax.training.ConfigError: prune_fraction must be in (0, 1); got 1.0
  """
  if isinstance(config, LotteryConfig):
    return config
  full = fill_config(LotteryConfig, config)
  checked_config(full.train)
  check_rules(full, _RULES)
  if full.scope == "global" and full.prune_rates:
    raise ConfigError(
      f"prune_rates must be empty with scope 'global'; got {full.prune_rates}"
    )
  return full


def to_json(config: LotteryConfig) -> dict[str, Any]:
  """Returns the fields that identify an experiment, as JSON values.

  Fields at their defaults are omitted, so that fields added in later versions do not
  change the identity of an experiment.

  Args:
    config: a complete config.

  Returns:
    Fields by name, flat.

  Example:
    >>> to_json(complete({"prune_fraction": 0.5, "rounds": 9, "train": {"seed": 1}}))
    {'train.seed': 1, 'prune_fraction': 0.5}
  """
  defaults = _flat(LotteryConfig())
  return {
    name: value
    for name, value in _flat(config).items()
    if name not in _NOT_THE_RUN and value != defaults[name]
  }


def _flat(config: LotteryConfig) -> dict[str, Any]:
  fields = config_to_json(config)
  flat = {f"train.{name}": value for name, value in fields.pop("train").items()}
  return flat | fields


def digest(stamp: Mapping[str, Any]) -> str:
  """Returns 16 hexadecimal digits that identify an experiment.

  Example:
    >>> digest({"prune_fraction": 0.5})
    '88499dbddac94cb8'
  """
  return hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()[:16]
