"""Sweeps: one method under several settings of a config's fields."""

import ast
import itertools
import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sparsejax.analysis import COLORS, new_figure, style_axes
from sparsejax.experiments import results
from sparsejax.experiments.comparison._programs import shared_programs
from sparsejax.training import (
  RESULT_FILE,
  ConfigError,
  WorkdirInUseError,
  complete_config,
  format_percent,
  read_json,
  read_metrics,
  train_and_evaluate,
  write_text,
)

_RANGE = re.compile(r"^(?P<low>[^.]*(?:\.\d*)?)\.\.(?P<high>.+)$")


class Field(NamedTuple):
  """One swept field.

  Attributes:
    name: the field's path in the config, such as `learning_rate` or `mesh.data`.
    values: the values to try; empty for a range.
    low: the lower end of a range, of which values are drawn log-uniformly.
    high: the upper end of a range.
  """

  name: str
  values: tuple[Any, ...] = ()
  low: float = 0.0
  high: float = 0.0


class Setting(NamedTuple):
  """The result of one setting; arrays have one entry per seed.

  Attributes:
    values: the value of each swept field.
    validation: validation accuracies at the end of training, in percent.
    test: test accuracies, in percent.
    seeds: the seeds.
  """

  values: Mapping[str, Any]
  validation: np.ndarray
  test: np.ndarray
  seeds: tuple[int, ...]


def parse_sweep(texts: Sequence[str]) -> list[Field]:
  """Parses swept fields from the command line.

  Args:
    texts: one text per field: `learning_rate=0.1,0.03`, or a range
      `learning_rate=0.001..0.3` for random search. A leading `config.` is ignored.

  Returns:
    The fields.

  Raises:
    ConfigError: a text has another form, a field comes twice, or a range is not of two
      positive numbers in order.

  Example:
    >>> parse_sweep(["config.learning_rate=0.1,0.03", "optimizer=sgd,adam"])[0].values
    (0.1, 0.03)
    >>> parse_sweep(["learning_rate=0.001..0.1"])[0].high
    0.1
  """
  fields = []
  for text in texts:
    name, equals, rest = text.partition("=")
    name = name.strip().removeprefix("config.")
    if not equals or not name or not rest:
      raise ConfigError(f"sweep must be of the form field=value,value; got {text!r}")
    if found := _RANGE.match(rest):
      try:
        low, high = float(found["low"]), float(found["high"])
      except ValueError:
        low = high = math.nan
      if not 0 < low < high < math.inf:
        raise ConfigError(
          f"sweep must have ranges of two positive numbers, low..high; got {text!r}"
        )
      fields.append(Field(name, low=low, high=high))
    else:
      fields.append(Field(name, tuple(_value(v) for v in rest.split(","))))
  names = [field.name for field in fields]
  if len(set(names)) < len(names):
    raise ConfigError(f"sweep must name each field once; got {', '.join(names)}")
  return fields


def _value(text: str) -> Any:
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return text  # a word, such as sgd


def sweep_settings(
  fields: Sequence[Field], number: int | None = None, seed: int = 0
) -> list[dict[str, Any]]:
  """Returns the settings of a grid, or random ones.

  Args:
    fields: the swept fields.
    number: the number of random settings; None for the whole grid.
    seed: of the random settings. A larger `number` continues the same sequence.

  Returns:
    One dict per setting, from field to value.

  Raises:
    ConfigError: a range is swept without `number`.

  Example:
    >>> sweep_settings(parse_sweep(["density=0.1,0.2", "optimizer=sgd,adam"]))[1]
    {'density': 0.1, 'optimizer': 'adam'}
    >>> len(sweep_settings(parse_sweep(["learning_rate=0.001..0.1"]), 5))
    5
  """
  if number is None:
    for field in fields:
      if not field.values:
        raise ConfigError(
          f"sweep must list the values of {field.name}, or draw a number of random"
          f" settings; got the range {field.low:g}..{field.high:g}"
        )
    names = [field.name for field in fields]
    grid = itertools.product(*(field.values for field in fields))
    return [dict(zip(names, values, strict=True)) for values in grid]
  rng = np.random.default_rng(seed)
  settings = []
  for _ in range(number):
    setting = {}
    for field in fields:
      if field.values:
        setting[field.name] = field.values[int(rng.integers(len(field.values)))]
      else:
        log = rng.uniform(math.log(field.low), math.log(field.high))
        setting[field.name] = float(f"{math.exp(log):.3g}")
    settings.append(setting)
  return settings


def setting_name(values: Mapping[str, Any]) -> str:
  """Returns the name of a setting: `learning_rate=0.1,optimizer=sgd`."""
  return ",".join(f"{name}={value}" for name, value in values.items())


def run_sweep(
  make_config: Callable[[], Any],
  workdir: pathlib.Path,
  settings: Sequence[Mapping[str, Any]],
  seeds: Sequence[int],
  *,
  say: Callable[[str], None] = print,
  verbose: bool = False,
) -> list[str]:
  """Trains all settings that are not finished, the first seed of all of them first.

  Each run has its own directory, `<workdir>/<setting>/seed=<seed>`. Finished runs are
  not repeated, and a stopped run resumes. All settings are checked before any is
  trained. Runs share their compiled programs, in `<workdir>/.compiled`: a second seed
  of a setting compiles nothing.

  Args:
    make_config: `() -> ConfigDict`; settings and seeds are set by this function.
    workdir: the folder of all runs.
    settings: from `sweep_settings`.
    seeds: the seeds to train.
    say: called with one line per finished run.
    verbose: whether to show the progress of each run too.

  Returns:
    The runs that other processes are training; empty if all runs are finished.

  Raises:
    TrainingError: a field is unknown or its value invalid, or as raised by
      `train_and_evaluate`.
    KeyboardInterrupt: a signal stopped a run; its checkpoint has been written.
  """
  configs = [_set(make_config(), values) for values in settings]
  busy = []
  jobs = [(s, v, c) for s in seeds for v, c in zip(settings, configs, strict=True)]
  for number, (seed, values, config) in enumerate(jobs, 1):
    run = _folder(workdir, values) / f"seed={seed}"
    if (run / RESULT_FILE).exists():
      continue
    config.update(seed=seed, num_seeds=1)
    try:
      with shared_programs(workdir):
        outcome = train_and_evaluate(config, run, verbose, summarize=False)
    except WorkdirInUseError:
      busy.append(f"{setting_name(values)}, seed {seed}")
      continue
    if not outcome.finished:
      raise KeyboardInterrupt
    write_text(run / "setting.json", json.dumps(dict(values)) + "\n")
    say(
      f"{setting_name(values)}, seed {seed}: {format_percent(outcome.test_accuracy)}"
      f" in {outcome.seconds:.0f} s  [{number} of {len(jobs)}]"
    )
  return busy


def _set(config: Any, values: Mapping[str, Any]) -> Any:
  """Sets fields of a config, and validates it."""
  for name, value in values.items():
    try:
      with config.unlocked():  # `complete_config` names a field that does not exist
        config.update_from_flattened_dict({name: value})
    except (KeyError, TypeError, AttributeError) as e:
      raise ConfigError(
        f"sweep must set fields of the config to values of their type; got"
        f" {name}={value!r} ({e})"
      ) from e
  complete_config(config)
  return config


def _folder(workdir: pathlib.Path, values: Mapping[str, Any]) -> pathlib.Path:
  return workdir / setting_name(values).replace("/", "_")


def collect_sweep(workdir: pathlib.Path) -> list[Setting]:
  """Reads all finished runs of a sweep.

  Args:
    workdir: the folder of all runs, as in `run_sweep`.

  Returns:
    One `Setting` per setting, by falling mean of the validation accuracy.
  """
  found: dict[str, list[tuple[int, float, float, dict[str, Any]]]] = {}
  for file in sorted(workdir.glob("*/seed=*/setting.json")):
    summary = read_json(file.parent / RESULT_FILE)
    records = read_metrics(file.parent)
    accuracies = [r["validation_accuracy"] for r in records if "validation_loss" in r]
    found.setdefault(file.parent.parent.name, []).append(
      (
        int(file.parent.name.removeprefix("seed=")),
        100 * float(np.ravel(accuracies[-1])[0]) if accuracies else math.nan,
        100 - summary["test_error_percent"][0],
        json.loads(file.read_text()),
      )
    )
  settings = []
  for runs in found.values():
    seeds, validation, test, values = zip(
      *sorted(runs, key=lambda r: r[0]), strict=True
    )
    settings.append(Setting(values[0], np.array(validation), np.array(test), seeds))
  return sorted(settings, key=lambda s: -float(np.mean(s.validation)))


def sweep_table(settings: Sequence[Setting]) -> str:
  """Formats the settings of a sweep, the best on validation first.

  Args:
    settings: from `collect_sweep`.

  Returns:
    A table with one line per setting.
  """
  names = list(dict.fromkeys(name for s in settings for name in s.values))
  head = [*names, "validation", "test", "seeds"]
  rows = [
    [
      *(str(s.values.get(name, "")) for name in names),
      format_percent(s.validation / 100).split(" (")[0],
      format_percent(s.test / 100).split(" (")[0],
      str(len(s.seeds)),
    ]
    for s in settings
  ]
  widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
  lines = [
    "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    for row in [head, *rows]
  ]
  return "\n".join(line.rstrip() for line in lines)


def write_sweep(
  settings: Sequence[Setting], out: pathlib.Path, plot: pathlib.Path
) -> None:
  """Writes the results file of a sweep and its plot.

  Args:
    settings: from `collect_sweep`.
    out: the JSON file.
    plot: the PNG file: one panel per swept field, with the mean validation accuracy of
      every setting and its standard error.
  """
  rows = []
  for s in settings:
    for metric, values in (("validation", s.validation), ("test", s.test)):
      if np.all(np.isfinite(values)):
        rows.append(
          results.row(
            setting_name(s.values),
            f"{metric}_accuracy_percent",
            values.tolist(),
            seeds=list(s.seeds),
          )
        )
  results.write_results(out, "sweep", rows)
  names = list(dict.fromkeys(name for s in settings for name in s.values))
  figure, panels = new_figure(1, len(names), (4.2 * len(names), 3.4), squeeze=False)
  for axes, name in zip(panels[0], names, strict=True):
    tried: list[Any] = [s.values.get(name) for s in settings]
    numbers = all(isinstance(v, int | float) and v > 0 for v in tried)
    labels = sorted({str(v) for v in tried})
    for s, value in zip(settings, tried, strict=True):
      n = len(s.seeds)
      sem = float(s.validation.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
      axes.errorbar(
        value if numbers else labels.index(str(value)),
        float(s.validation.mean()),
        sem,
        fmt="o",
        color=COLORS[0],
        capsize=3,
      )
    if numbers and max(tried) > 5 * min(tried):
      axes.set_xscale("log")
    if not numbers:
      axes.set_xticks(range(len(labels)), labels)
    axes.set_xlabel(name)
    axes.set_ylabel("validation accuracy, %")
    style_axes(axes)
  figure.savefig(plot, dpi=150)
