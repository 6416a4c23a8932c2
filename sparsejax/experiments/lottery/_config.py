"""The config of a lottery ticket experiment: its fields, defaults and rules."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import config_dict

from sparsejax.lottery import CRITERIA, MASK_ZERO
from sparsejax.training import ConfigError, complete_config, fill_config
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


def default_config() -> config_dict.ConfigDict:
  """Returns a config with all fields at their defaults.

  Returns:
    A locked `ConfigDict`. `train` contains the fields of `training.default_config`, of
    which `method` and the fields of methods have no effect here.
  """
  c = config_dict.ConfigDict()
  c.train = default_training_config()
  # Pruning.
  c.rounds = 5  # levels in addition to the dense one
  c.prune_fraction = 0.2  # fraction of the live weights pruned per round
  c.prune_rates = config_dict.ConfigDict()  # {regex of paths: fraction}
  c.scope = "layer"  # or "global"
  c.where = ""  # regex of the leaves to prune; empty for kernels
  c.criterion = "large_final"  # of sparsejax.lottery.criterion
  # Training after pruning.
  c.restart = "rewind"  # "learning_rate" and "fine_tune" keep the trained weights
  c.rewind_step = 0  # the step to rewind weights (or only the schedule) to
  c.mask_zero = "zero"  # or "init", "init_if_moved_away": values of pruned weights
  # {name: levels}; see the command line's help. Levels above `rounds` are ignored.
  c.controls = config_dict.ConfigDict()
  c.one_shot_levels = ()  # levels whose densities are pruned to in one step
  # Measurements.
  c.eval_every = 100  # steps between validations; one of them is the early stop
  c.measure_every = 1000  # steps between measurements of the test accuracy
  c.last_evaluations = 10  # the test accuracy is measured at the last validations too
  c.together = 0  # seeds trained by one vmap; 0 for one on a CPU and all elsewhere
  return c.lock()


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
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
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


def complete(config: Any) -> Any:
  """Completes a config with the defaults and validates every field.

  Args:
    config: some or all fields of `default_config`, as a `ConfigDict` or a dict.

  Returns:
    All fields, a `FrozenConfigDict`.

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
  train = lambda _, given: config_dict.ConfigDict(complete_config(given))
  full = fill_config(default_config(), config, train=train)
  for name, (rule, text) in _RULES.items():
    if not rule(full[name]):
      raise ConfigError(f"{name} must be {text}; got {full[name]!r}")
  if full.scope == "global" and full.prune_rates:
    raise ConfigError(
      f"prune_rates must be empty with scope 'global'; got {dict(full.prune_rates)}"
    )
  return config_dict.FrozenConfigDict(full)


def to_json(config: Any) -> dict[str, Any]:
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
  defaults = _flat(default_config().to_dict())
  return {
    name: value
    for name, value in _flat(config.to_dict()).items()
    if name not in _NOT_THE_RUN and value != defaults.get(name)
  }


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
  flat = {f"train.{name}": value for name, value in config["train"].items()}
  flat |= {name: value for name, value in config.items() if name != "train"}
  return json.loads(json.dumps(flat))


def digest(stamp: Mapping[str, Any]) -> str:
  """Returns 16 hexadecimal digits that identify an experiment.

  Example:
    >>> digest({"prune_fraction": 0.5})
    '88499dbddac94cb8'
  """
  return hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()[:16]
