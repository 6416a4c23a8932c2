"""The config of a training run: its fields, their defaults and their rules."""

import difflib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import config_dict

from sparsejax.training import _errors, data
from sparsejax.training._methods import METHODS
from sparsejax.training.data import _augment

DISTRIBUTIONS = ("uniform", "erdos_renyi", "erk", "global")
OPTIMIZERS = ("sgd", "adam", "adamw")
LR_SCHEDULES = ("constant", "step", "cosine")
COMPUTE_DTYPES = ("float32", "bfloat16")
STRUCTURES = ("any", "block")
EXECUTIONS = ("dense", "sparse")


def default_config() -> config_dict.ConfigDict:
  """Returns the config of a run with every field at its default.

  Returns:
    A locked `ConfigDict`: its fields can be set, and a misspelt field raises where it
    is set.
  """
  c = config_dict.ConfigDict()
  # Data.
  c.dataset = "digits"
  c.data_dir = ""  # a TFDS folder; if empty, TFDS_DATA_DIR, then TFDS's default
  c.validation_fraction = 0.1  # of the training images; does not depend on the seed
  c.augmentation = "none"
  c.centering = "channel"  # "pixel": subtracts the mean image; "none": x / 255
  # Model.
  c.model = "mlp"  # a key of sparsejax.models.MODELS
  c.model_kwargs = config_dict.ConfigDict()
  c.compute_dtype = "float32"  # of the model; parameters and moments stay float32
  # Sparsity: the method, the budget and the schedule of mask updates.
  c.method = "sparse_momentum"
  c.method_kwargs = config_dict.ConfigDict()
  c.density = 0.1  # live weights / weights
  c.distribution = "uniform"  # the initial budget per layer; or "global", for methods
  # that compare the weights of all layers
  c.structure = "any"  # "block": whole blocks of block x block weights are masked
  c.block = 128  # inputs and outputs per block
  c.execution = "dense"  # "sparse": products skip dead blocks; needs structure="block"
  c.rescale_start = False  # scale sparse layers up to the variance of dense ones
  c.update_every = 100  # steps from one mask update to the next
  c.start_fraction = 0.0  # the fraction of the run after which mask updates start ...
  c.end_fraction = 1.0  # ... and the fraction after which they end
  c.drop_fraction = 0.5  # of the live weights, at step 0
  c.final_drop_fraction = 0.0  # reached at end_fraction; a cosine in between
  c.pruning_batches = 1  # batches for a method that prunes at initialization
  # Optimizer.
  c.optimizer = "sgd"  # sgd has Nesterov momentum
  c.learning_rate = 0.1
  c.lr_schedule = "step"
  c.lr_decay_every = 25_000  # steps; lr_schedule="step" only
  c.lr_decay_epochs = ()  # epochs; replaces lr_decay_every unless empty
  c.lr_decay_factor = 0.1
  c.warmup_epochs = 0.0  # the learning rate rises linearly from zero
  c.momentum = 0.9
  c.weight_decay = 5e-4  # L2 for sgd and adam, decoupled for adamw
  c.label_smoothing = 0.0
  c.lr_scales = config_dict.ConfigDict()  # {regex of paths: learning-rate factor}
  # Devices; see sparsejax.training.parallel._mesh.
  c.mesh = config_dict.ConfigDict()
  c.mesh.data = 1  # shards per batch; -1: all devices that `model` leaves free
  c.mesh.model = 1  # shards per kernel
  c.mesh.fsdp = False  # shard parameters, masks and moments over `data` too
  c.mesh.rules = config_dict.ConfigDict()  # {regex of paths: one mesh axis or None per
  # axis of the parameter}, such as {"experts": ("model", None, None)}
  # Length and seeds.
  c.batch_size = 100
  c.num_epochs = 10
  c.seed = 0
  c.num_seeds = 1  # trains seed, seed + 1, ... together under vmap
  # Logging and checkpoints.
  c.log_every = 100  # steps
  c.eval_every = 1  # epochs
  c.checkpoint_every = 10  # epochs; the last step is always saved
  c.tensorboard = False
  c.track_exploration = False  # log the fraction of weights ever live
  return c.lock()


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
    )
  config.method = method
  config.update(METHODS[method].fields)


def _at_least(low: float) -> tuple[Callable[[Any], bool], str]:
  return lambda v: v >= low, f"at least {low}"


def _one_of(names: tuple[str, ...]) -> tuple[Callable[[Any], bool], str]:
  return lambda v: v in names, "one of " + ", ".join(names)


def _is_regex(text: str) -> bool:
  try:
    re.compile(text)
  except re.error:
    return False
  return True


# Per field: a predicate on its value, and the rule in words for the error message.
_FRACTION = (lambda v: 0 <= v < 1, "in [0, 1)")
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
  "dataset": _one_of((*data.NAMES, *data.NOT_IN_MEMORY)),
  "validation_fraction": _FRACTION,
  "augmentation": _one_of(tuple(_augment.AUGMENTATIONS)),
  "method": _one_of(tuple(METHODS)),
  "density": (lambda v: 0 < v <= 1, "in (0, 1]"),
  "distribution": _one_of(DISTRIBUTIONS),
  "structure": _one_of(STRUCTURES),
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
  "centering": _one_of(("channel", "pixel", "none")),
  "batch_size": _at_least(1),
  "num_epochs": _at_least(1),
  "seed": (lambda v: 0 <= v < 2**31, "in [0, 2**31)"),
  "num_seeds": _at_least(1),
  "log_every": _at_least(1),
  "eval_every": _at_least(1),
  "checkpoint_every": _at_least(1),
}


def complete(config: Mapping[str, Any]) -> Any:
  """Adds the defaults to a config and validates every field.

  Args:
    config: some or all fields of `default_config`, as a `ConfigDict` or a dict.

  Returns:
    A `FrozenConfigDict` with all fields.

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
  full = filled(default_config(), config, mesh=_mesh)
  for name, (rule, text) in _RULES.items():
    if not rule(full[name]):
      raise _errors.ConfigError(f"{name} must be {text}; got {full[name]!r}")
  # Rules between two fields.
  for low, high in (
    ("start_fraction", "end_fraction"),
    ("final_drop_fraction", "drop_fraction"),
    ("warmup_epochs", "num_epochs"),
  ):
    if full[low] > full[high]:
      raise _errors.ConfigError(
        f"{low} must not be above {high} ({full[high]}); got {full[low]}"
      )
  if full["execution"] == "sparse" and full["structure"] != "block":
    raise _errors.ConfigError(
      f"structure must be block with execution='sparse'; got {full['structure']!r}"
    )
  return config_dict.FrozenConfigDict(full)


def filled(
  defaults: config_dict.ConfigDict, config: Mapping[str, Any], **nested: Callable
) -> Any:
  """Overwrites defaults with the fields of a config, checking names and types.

  Args:
    defaults: every field; changed in place.
    config: some of the fields, as a `ConfigDict` or a dict. A field whose default is a
      `ConfigDict` accepts any dict; a field whose default is a float accepts an
      integer too.
    **nested: for dict fields with their own rules, a function
      `(default, value) -> ConfigDict`, by the field's name.

  Returns:
    `defaults`.

  Raises:
    ConfigError: if a field is unknown or of the wrong type; names both.
  """
  if not isinstance(config, Mapping | config_dict.ConfigDict):
    raise _errors.ConfigError(f"config must be a dict of fields; got {config!r}")
  for name, value in config.items():
    if name not in defaults:
      close = difflib.get_close_matches(str(name), list(defaults), 1)
      known = ", ".join(defaults)
      hint = f"did you mean {close[0]!r}?" if close else f"there are: {known}"
      raise _errors.ConfigError(f"config has no field {name!r}; {hint}")
    default = defaults[name]
    if isinstance(default, config_dict.ConfigDict):
      if not isinstance(value, Mapping | config_dict.ConfigDict):
        raise _errors.ConfigError(f"{name} must be a dict; got {value!r}")
      fill = nested.get(name, lambda _, value: config_dict.ConfigDict(dict(value)))
      defaults[name] = fill(default, value)
      continue
    kind = type(default)
    # bool is an int to Python, but `num_epochs=True` is a mistake.
    exact = kind is float and type(value) is int
    if type(value) is not kind and not exact:
      raise _errors.ConfigError(f"{name} must be {kind.__name__}; got {value!r}")
    defaults[name] = value
  return defaults


def _mesh(mesh: config_dict.ConfigDict, given: Any) -> config_dict.ConfigDict:
  """Overwrites the mesh's defaults, checking names and types."""
  for name, value in given.items():
    if name not in mesh:
      raise _errors.ConfigError(
        f"mesh has no field {name!r}; there are: {', '.join(mesh)}"
      )
    if name == "rules":
      value = _rules(value)
    elif type(value) is not type(mesh[name]):
      raise _errors.ConfigError(
        f"mesh.{name} must be {type(mesh[name]).__name__}; got {value!r}"
      )
    mesh[name] = value
  return mesh


def _rules(given: Any) -> config_dict.ConfigDict:
  """Validates `mesh.rules` and turns each rule into a tuple."""
  axes = ("data", "model", None)
  mapping = isinstance(given, Mapping | config_dict.ConfigDict)
  for value in given.values() if mapping else (given,):
    if not (isinstance(value, tuple | list) and set(value) <= set(axes)):
      raise _errors.ConfigError(
        f"mesh.rules must be a dict of tuples of {axes}; got {given!r}"
      )
  rules: Any = given
  return config_dict.ConfigDict({name: tuple(rule) for name, rule in rules.items()})


def to_json(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a config as the JSON values that `json.loads` gives; tuples are lists."""
  as_dict = config.to_dict() if hasattr(config, "to_dict") else dict(config)  # pyright: ignore
  return json.loads(json.dumps(as_dict))


def from_json(values: Any) -> Any:
  """Inverts `to_json`: returns the values with tuples in place of lists.

  Example:
    >>> from_json({"model_kwargs": {"features": [30, 10]}})
    {'model_kwargs': {'features': (30, 10)}}
  """
  if isinstance(values, Mapping):
    return {name: from_json(value) for name, value in values.items()}
  if isinstance(values, list):
    return tuple(map(from_json, values))
  return values


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
  defaults = to_json(default_config().to_dict())

  def value(config, name):
    return config.get(name, defaults.get(name, "(absent)"))

  return [
    f"{name}: {value(old, name)!r} -> {value(new, name)!r}"
    for name in sorted({*old, *new}.difference(_NOT_THE_RUN))
    if value(old, name) != value(new, name)
  ]
