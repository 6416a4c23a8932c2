"""The config of a training run: its fields, their defaults and their rules."""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import config_dict

from sparsejax import models
from sparsejax.core import did_you_mean
from sparsejax.training import _errors, data
from sparsejax.training._methods import METHODS
from sparsejax.training.config._fields import (
  Rules,
  check_rules,
  filled,
  to_config_dict,
  to_json,
)
from sparsejax.training.data import _augment

DISTRIBUTIONS = ("uniform", "erdos_renyi", "erk", "global")
# Those of optax that need gradients only and accept a schedule, and Muon.
OPTIMIZERS = (
  *("sgd", "adam", "adamw", "adabelief", "adadelta", "adafactor", "adagrad", "adamax"),
  *("adamaxw", "adan", "amsgrad", "fromage", "lamb", "lars", "lion", "muon"),
  *("noisy_sgd", "novograd", "optimistic_adam_v2"),
  *("optimistic_gradient_descent", "radam", "rmsprop", "sign_sgd", "signum"),
  "yogi",
)
LR_SCHEDULES = ("constant", "step", "cosine")
COMPUTE_DTYPES = ("float32", "bfloat16")
STRUCTURES = ("any", "block")  # or N:M, such as "2:4"
EXECUTIONS = ("dense", "sparse")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """The devices of a run; see `sparsejax.training.parallel`.

  Attributes:
    data: shards per batch; -1 for all devices that `model` leaves free.
    model: shards per kernel.
    fsdp: whether to shard parameters, masks and moments over `data` too.
    rules: `{regex of paths: one mesh axis or None per axis of the parameter}`, such as
      `{"experts": ("model", None, None)}`.
  """

  data: int = 1
  model: int = 1
  fsdp: bool = False
  rules: Mapping[str, tuple[str | None, ...]] = dataclasses.field(default_factory=dict)


def empty() -> Any:
  """Returns a dataclass field whose default is an empty dict."""
  return dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """A complete config, as `complete` returns it; users write a `ConfigDict`.

  `--help` shows the texts of the attributes, their defaults and rules; see `describe`.

  Attributes:
    dataset: the data set to train on.
    data_dir: a TFDS folder; if empty, `TFDS_DATA_DIR`, then the default of TFDS.
    validation_fraction: the fraction of the training images to hold out, whatever the
      seed.
    augmentation: the augmentation of training images.
    centering: "channel" normalizes by channel, "pixel" subtracts the mean image,
      "none" divides by 255.
    model: the network, from `sparsejax.models`.
    model_kwargs: arguments of the model.
    compute_dtype: the dtype of the model; params and moments stay float32.
    method: the method of sparse training.
    method_kwargs: arguments of the method, which take precedence over fields, such as
      `{'drop_scope': 'global'}`; scores by name, as in `{'grow_score': 'random'}`.
    density: live weights / weights, over all sparsified layers.
    distribution: the initial budget per layer; "global" for methods that compare the
      weights of all layers.
    structure: "block" masks whole blocks of `block` x `block` weights, "2:4" keeps two
      of every four inputs of each output (any N:M, with its density); in the kernels
      that divide so.
    block: inputs and outputs per block.
    execution: "sparse" skips the products of dead blocks; needs structure="block".
    rescale_start: scale sparse layers up to the variance of dense ones at the start.
    update_every: steps from one mask update to the next.
    start_fraction: the fraction of the run after which mask updates start.
    end_fraction: the fraction of the run after which they end.
    drop_fraction: the fraction of live weights to drop, at step 0.
    final_drop_fraction: the fraction at `end_fraction`; a cosine in between.
    pruning_batches: batches for a method that prunes at initialization.
    optimizer: an optimizer of optax; sgd has Nesterov momentum.
    optimizer_kwargs: arguments of the optimizer, which take precedence over fields.
    learning_rate: the learning rate, or its peak.
    lr_schedule: the schedule of the learning rate; "step" decays at intervals.
    lr_decay_every: steps between decays, for lr_schedule="step".
    lr_decay_epochs: epochs of the decays; replaces `lr_decay_every` unless empty.
    lr_decay_factor: the factor of each decay.
    warmup_epochs: epochs in which the learning rate rises linearly from zero.
    momentum: the optimizer's argument `momentum` or b1.
    weight_decay: decoupled where the optimizer has an argument for it, as adamw; else
      L2, as for sgd and adam.
    label_smoothing: the probability that labels give to all classes alike.
    lr_scales: `{regex of paths: factor of the learning rate}`.
    mesh: the devices; see `MeshConfig`.
    batch_size: examples per step.
    num_epochs: epochs of the whole run.
    num_steps: steps of the whole run, for short trials; 0 for `num_epochs`. Schedules
      end with the run, and their epochs shrink in proportion.
    seed: the seed of weights, masks and data order.
    num_seeds: train `seed`, `seed + 1`, ... in one vectorized run.
    log_every: steps between two records.
    eval_every: epochs between two evaluations on the validation images.
    checkpoint_every: epochs between two checkpoints; the last step is always saved.
    tensorboard: write event files for TensorBoard too.
    track_exploration: log the fraction of weights that were ever live.
  """

  # Data.
  dataset: str = "digits"
  data_dir: str = ""
  validation_fraction: float = 0.1
  augmentation: str = "none"
  centering: str = "channel"
  # Model.
  model: str = "mlp"
  model_kwargs: Mapping[str, Any] = empty()
  compute_dtype: str = "float32"
  # Sparsity: the method, the budget and the schedule of mask updates.
  method: str = "sparse_momentum"
  method_kwargs: Mapping[str, Any] = empty()
  density: float = 0.1
  distribution: str = "uniform"
  structure: str = "any"
  block: int = 128
  execution: str = "dense"
  rescale_start: bool = False
  update_every: int = 100
  start_fraction: float = 0.0
  end_fraction: float = 1.0
  drop_fraction: float = 0.5
  final_drop_fraction: float = 0.0
  pruning_batches: int = 1
  # Optimizer.
  optimizer: str = "sgd"
  optimizer_kwargs: Mapping[str, Any] = empty()
  learning_rate: float = 0.1
  lr_schedule: str = "step"
  lr_decay_every: int = 25_000
  lr_decay_epochs: tuple[float, ...] = ()
  lr_decay_factor: float = 0.1
  warmup_epochs: float = 0.0
  momentum: float = 0.9
  weight_decay: float = 5e-4
  label_smoothing: float = 0.0
  lr_scales: Mapping[str, float] = empty()
  mesh: MeshConfig = MeshConfig()
  # Length and seeds.
  batch_size: int = 100
  num_epochs: int = 10
  num_steps: int = 0
  seed: int = 0
  num_seeds: int = 1
  # Logging and checkpoints.
  log_every: int = 100
  eval_every: int = 1
  checkpoint_every: int = 10
  tensorboard: bool = False
  track_exploration: bool = False


def default_config() -> config_dict.ConfigDict:
  """Returns the config of a run with every field at its default.

  Returns:
    A locked `ConfigDict`: its fields can be set, and a misspelt field raises where it
    is set.
  """
  return to_config_dict(TrainConfig())


def use_method(config: config_dict.ConfigDict, method: str) -> None:
  """Sets a config's method and the fields that the method's paper prescribes.

  Args:
    config: a config from `default_config`; changed in place.
    method: a key of `METHODS`. On the command line it is the variant in
      `--config=file.py:variant`.

  Raises:
    ConfigError: if `config` is not a `ConfigDict`, or `method` is unknown.
  """
  if not isinstance(config, config_dict.ConfigDict):
    raise _errors.ConfigError(f"config must be a ConfigDict; got {config!r}")
  if method not in METHODS:
    raise _errors.ConfigError(
      f"method must be one of {', '.join(METHODS)}; got {method!r}"
      + did_you_mean(method, METHODS)
    )
  config.method = method
  config.update(METHODS[method].fields)


def _at_least(low: float) -> tuple[Callable[[Any], bool], str]:
  return lambda v: v >= low, f"at least {low}"


def _one_of(names: tuple[str, ...]) -> tuple[Callable[[Any], bool], str]:
  return lambda v: v in names, "one of " + ", ".join(names)


def n_of_m(structure: str) -> tuple[int, int] | None:
  """Returns n and m of a structure such as "2:4", and None for another one."""
  found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", structure)
  n, m = (int(number) for number in found.groups()) if found else (0, 0)
  return (n, m) if 0 < n < m else None


def _is_regex(text: str) -> bool:
  try:
    re.compile(text)
  except re.error:
    return False
  return True


# Per field: a predicate on its value, and the rule in words for the error message.
_FRACTION = (lambda v: 0 <= v < 1, "in [0, 1)")
_RULES: Rules = {
  "dataset": _one_of((*data.NAMES, *data.NOT_IN_MEMORY)),
  "validation_fraction": _FRACTION,
  "augmentation": _one_of(tuple(_augment.AUGMENTATIONS)),
  "model": _one_of(tuple(models.MODELS)),
  "method": _one_of(tuple(METHODS)),
  "density": (lambda v: 0 < v <= 1, "in (0, 1]"),
  "distribution": _one_of(DISTRIBUTIONS),
  "structure": (
    lambda v: v in STRUCTURES or n_of_m(v) is not None,
    f"one of {', '.join(STRUCTURES)}, or N:M such as 2:4",
  ),
  "block": _at_least(1),
  "execution": _one_of(EXECUTIONS),
  "update_every": _at_least(1),
  "start_fraction": _FRACTION,
  "end_fraction": (lambda v: 0 < v <= 1, "in (0, 1]"),
  "drop_fraction": _FRACTION,
  "final_drop_fraction": _FRACTION,
  "pruning_batches": _at_least(1),
  "optimizer": _one_of(OPTIMIZERS),
  "learning_rate": (lambda v: 0 < v < float("inf"), "above 0 and finite"),
  "lr_schedule": _one_of(LR_SCHEDULES),
  "lr_decay_every": _at_least(1),
  "lr_decay_epochs": (
    lambda v: all(type(e) in (int, float) and e > 0 for e in v),
    "a tuple of numbers above 0",
  ),
  "lr_decay_factor": (lambda v: 0 < v <= 1, "in (0, 1]"),
  "momentum": _FRACTION,
  "warmup_epochs": (lambda v: 0 <= v < float("inf"), "at least 0 and finite"),
  "weight_decay": (lambda v: 0 <= v < float("inf"), "at least 0 and finite"),
  "label_smoothing": _FRACTION,
  "lr_scales": (
    lambda v: all(
      _is_regex(path) and type(s) in (int, float) and 0 <= s < float("inf")
      for path, s in v.items()
    ),
    "a dict from regexes to finite numbers at least 0",
  ),
  "compute_dtype": _one_of(COMPUTE_DTYPES),
  "mesh": (
    lambda v: v.model >= 1 and (v.data >= 1 or v.data == -1),
    "of at least 1 along data (or -1) and model",
  ),
  "centering": _one_of(tuple(data.CENTERINGS)),
  "batch_size": _at_least(1),
  "num_epochs": _at_least(1),
  "num_steps": _at_least(0),
  "seed": (lambda v: 0 <= v < 2**31, "in [0, 2**31)"),
  "num_seeds": _at_least(1),
  "log_every": _at_least(1),
  "eval_every": _at_least(1),
  "checkpoint_every": _at_least(1),
}


def complete(config: Mapping[str, Any] | TrainConfig) -> TrainConfig:
  """Adds the defaults to a config and validates every field.

  Args:
    config: some or all fields of `default_config`, as a `ConfigDict` or a dict; or a
      complete config, which is returned.

  Returns:
    All fields, frozen.

  Raises:
    ConfigError: if a field breaks its rule; names the field, the rule and the value.

  Example:
    >>> complete({"density": 0.2}).density
    0.2
    >>> complete({"densty": 0.2})
    Traceback (most recent call last):
      ...
    sparsejax.training.ConfigError: config has no field 'densty'; did you mean
    'density'?
  """
  if isinstance(config, TrainConfig):
    return config
  return checked(filled(TrainConfig, config))


def checked(full: TrainConfig) -> TrainConfig:
  """Returns a config, or raises `ConfigError` if a field breaks its rule."""
  check_rules(full, _RULES)
  # Rules between two fields.
  for low, high in (
    ("start_fraction", "end_fraction"),
    ("final_drop_fraction", "drop_fraction"),
    ("warmup_epochs", "num_epochs"),
  ):
    if getattr(full, low) > getattr(full, high):
      raise _errors.ConfigError(
        f"{low} must not be above {high} ({getattr(full, high)});"
        f" got {getattr(full, low)}"
      )
  axes = ("data", "model", None)
  for rule in full.mesh.rules.values():
    if not (isinstance(rule, tuple) and all(axis in axes for axis in rule)):
      raise _errors.ConfigError(
        f"mesh.rules must be a dict of tuples of {axes}; got {full.mesh.rules!r}"
      )
  if (found := n_of_m(full.structure)) and full.density != found[0] / found[1]:
    raise _errors.ConfigError(
      f"density must be {found[0] / found[1]:g} with structure={full.structure!r}; got"
      f" {full.density:g}"
    )
  if full.execution == "sparse" and full.structure != "block":
    raise _errors.ConfigError(
      f"structure must be block with execution='sparse'; got {full.structure!r}"
    )
  return full


def total_steps(config: TrainConfig, examples: int) -> int:
  """Returns the number of steps of a whole run.

  num_steps, or floor(examples / batch_size) * num_epochs where that is 0

  Args:
    config: a complete config.
    examples: the number of training examples. Those of an epoch that do not fill a
      batch are dropped.

  Returns:
    The number of updates.

  Example:
    >>> total_steps(complete({"batch_size": 32, "num_epochs": 2}), 100)
    6
  """
  return config.num_steps or examples // config.batch_size * config.num_epochs


def describe(kind: type, rules: Rules, prefix: str = "") -> str:
  """Describes the fields of a config: defaults, meanings and rules, for a help text.

  Args:
    kind: a frozen dataclass with a default for every field, whose docstring has an
      Attributes section.
    rules: the rules of its fields; a field may have none.
    prefix: the names of the configs around it, such as `mesh.`.

  Returns:
    Two or more lines per field.

  Example:
    >>> text = describe(MeshConfig, {"model": (lambda v: v >= 1, "at least 1")})
    >>> text.splitlines()[2].split(), text.splitlines()[3].strip()
    (['--config.model=1'], 'shards per kernel (at least 1)')
  """
  section = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2]
  found = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", section, flags=re.MULTILINE)
  meanings = {name: " ".join(text.split()).removesuffix(".") for name, text in found}
  lines = []
  for name, default in vars(kind()).items():
    if dataclasses.is_dataclass(default):
      inner = f"{prefix}{name}."
      if isinstance(default, MeshConfig):
        lines.append(describe(MeshConfig, {}, inner))
      else:
        lines += [f"  --config.{inner}FIELD", f"      {meanings[name]}"]
      continue
    rule = f" ({rules[name][1]})" if name in rules else ""
    shown = repr(default) if isinstance(default, str) else default
    indent = " " * 6
    lines.append(f"  --config.{prefix}{name}={shown}")
    lines += textwrap.wrap(
      meanings[name] + rule, 80, initial_indent=indent, subsequent_indent=indent
    )
  return "\n".join(lines)


def config_help() -> str:
  """Returns a help text on all fields of a config, for the command line."""
  return describe(TrainConfig, _RULES)


# The data folder and the devices may change when a run is resumed.
_NOT_THE_RUN = ("data_dir", "mesh")


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Returns one line, `name: old -> new`, per field that differs.

  Args:
    old: a config from `to_json`.
    new: a config from `to_json`.

  Returns:
    The lines, sorted by field; empty if both configs describe the same run. `data_dir`
    and `mesh` are not compared: a run may be resumed on another mesh, where its
    gradients are rounded differently. A field missing from an older config counts as
    its default.
  """
  defaults = to_json(TrainConfig())

  def value(config, name):
    return config.get(name, defaults.get(name, "(absent)"))

  return [
    f"{name}: {value(old, name)!r} -> {value(new, name)!r}"
    for name in sorted({*old, *new}.difference(_NOT_THE_RUN))
    if value(old, name) != value(new, name)
  ]
