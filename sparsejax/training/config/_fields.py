"""Frozen dataclasses as configs: defaults, rules, and JSON."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ml_collections import config_dict

from sparsejax.core import did_you_mean
from sparsejax.training import _errors

if TYPE_CHECKING:
  from _typeshed import DataclassInstance

ConfigClass = TypeVar("ConfigClass")
# What a rule is in code and in words: a predicate of a field's value, and a text.
Rules = Mapping[str, tuple[Callable[[Any], bool], str]]


def check_rules(config: object, rules: Rules) -> None:
  """Raises `ConfigError` for the first field that breaks its rule."""
  for name, (rule, text) in rules.items():
    value = getattr(config, name)
    if not rule(value):
      _, is_choice, names = text.partition("one of ")
      hint = did_you_mean(value, names.split(", ")) if is_choice else ""
      raise _errors.ConfigError(f"{name} must be {text}; got {value!r}{hint}")


def filled(
  kind: type[ConfigClass],
  config: Mapping[str, Any] | config_dict.ConfigDict,
  name: str = "config",
) -> ConfigClass:
  """Returns a config with the given fields, and the others at their defaults.

  Args:
    kind: a frozen dataclass with a default for every field.
    config: some of the fields, as a `ConfigDict` or a dict. A field whose default is a
      dict accepts any dict, a field whose default is a float accepts an integer too,
      and a field whose default is such a dataclass accepts some of its fields.
    name: what to call the config in error messages.

  Returns:
    An instance of `kind`, in which lists are tuples.

  Raises:
    ConfigError: if a field is unknown or of the wrong type; names both.
  """
  if not isinstance(config, Mapping | config_dict.ConfigDict):
    raise _errors.ConfigError(f"{name} must be a dict of fields; got {config!r}")
  defaults: dict[str, Any] = vars(kind())
  values: dict[str, Any] = {}
  value: Any
  for field, value in config.items():
    if field not in defaults:
      hint = did_you_mean(field, defaults) or f"; there are: {', '.join(defaults)}"
      raise _errors.ConfigError(f"{name} has no field {field!r}{hint}")
    path = field if name == "config" else f"{name}.{field}"
    default = defaults[field]
    if dataclasses.is_dataclass(default):
      values[field] = filled(type(default), value, path)
      continue
    if isinstance(default, Mapping):
      if not isinstance(value, Mapping | config_dict.ConfigDict):
        raise _errors.ConfigError(f"{path} must be a dict; got {value!r}")
      values[field] = from_json(value)
      continue
    wanted = type(default)
    # bool is an int to Python, but `num_epochs=True` is a mistake.
    if type(value) is int and wanted is float:
      value = float(value)
    if type(value) is not wanted:
      raise _errors.ConfigError(f"{path} must be {wanted.__name__}; got {value!r}")
    values[field] = value
  return kind(**values)


def to_config_dict(config: "DataclassInstance") -> config_dict.ConfigDict:
  """Returns the fields of a config in the form in which users write configs.

  Args:
    config: a frozen dataclass.

  Returns:
    A locked `ConfigDict`.
  """
  return config_dict.ConfigDict(dataclasses.asdict(config)).lock()


def to_json(
  config: "DataclassInstance | Mapping[str, Any] | config_dict.ConfigDict",
) -> dict[str, Any]:
  """Returns a config as the JSON values that `json.loads` gives; tuples are lists.

  Args:
    config: a complete config, a `ConfigDict` or a dict.

  Returns:
    The fields by name.
  """
  if dataclasses.is_dataclass(config):
    config = to_config_dict(config)
  fields = config if isinstance(config, Mapping) else config.to_dict()
  return json.loads(json.dumps(fields))


def from_json(values: Any) -> Any:
  """Inverts `to_json`: returns the values with tuples in place of lists.

  Example:
    >>> from_json({"model_kwargs": {"features": [30, 10]}})
    {'model_kwargs': {'features': (30, 10)}}
  """
  if isinstance(values, Mapping | config_dict.ConfigDict):
    return {name: from_json(value) for name, value in values.items()}
  if isinstance(values, list | tuple):
    return tuple(map(from_json, values))
  return values
