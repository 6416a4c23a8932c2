"""Writing and merging of results files, which store numbers and their provenance."""

import functools
import json
import math
import os
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sparsejax.training import environment, read_environment

KEYS = (
  "case",
  "metric",
  "mean",
  "sem",
  "n",
  "values",
  "paper",
  "source",
  "note",
  "runs",
)
RUN_KEYS = ("command", "commit", "date", "hardware", "versions")
# What programs read back from the rows of comparisons.
FIELDS = ("model", "method", "density", "steps", "seeds", "multiply_adds", "explored")


def row(
  case: str,
  metric: str,
  values: float | Sequence[float],
  *,
  paper: float | None = None,
  source: str = "",
  note: str = "",
  runs: Sequence[Mapping[str, Any]] | None = None,
  **fields: Any,
) -> dict[str, Any]:
  """Creates a row of a results file, with the mean and standard error of its values.

  `sem = std(values, ddof=1) / sqrt(n)`; None for a single value.

  Args:
    case: a path such as `lenet300/sparse_momentum/density=0.05`.
    metric: the metric's name, including its unit, such as `test_error_percent`.
    values: one finite number per seed, or a single number.
    paper: the published value.
    source: the source of the published value: the paper, and its table or figure.
    note: further information for the reader; no program reads it.
    runs: the environments of the processes that computed the values, from `trained_in`
      if they are finished runs; repetitions are left out. Default: the environment of
      this process.
    **fields: JSON values for programs, by names in `FIELDS`.

  Returns:
    A dict with the keys `KEYS`, then those of `fields`.

  Raises:
    ValueError: there are no values, or one is not a finite number; or a field is not
      one of `FIELDS`.

  Example:
    >>> r = row("xor/obs", "correct_of_100", [100, 98])
    >>> r["mean"], r["sem"], r["n"]
    (99.0, 1.0, 2)
  """
  numbers = values if isinstance(values, list | tuple) else [values]
  if not all(isinstance(v, int | float | np.number) for v in numbers):
    raise ValueError(f"values of {case} {metric} must be numbers, got {values!r}.")
  several = (
    [float(v) for v in values] if isinstance(values, Sequence) else [float(values)]
  )
  if not several or not all(math.isfinite(v) for v in several):
    raise ValueError(f"values of {case} {metric} must be finite numbers, got {values}.")
  n = len(several)
  mean = math.fsum(several) / n
  sem = None
  if n > 1:
    variance = math.fsum((v - mean) ** 2 for v in several) / (n - 1)
    sem = math.sqrt(variance / n)
  if unknown := set(fields) - set(FIELDS):
    raise ValueError(f"fields must be of {FIELDS}, got {sorted(unknown)}.")
  made = []
  for run in runs or [_here(tuple(sys.argv))]:
    if run not in made:
      made.append(dict(run))
  entries = (case, metric, mean, sem, n, several, paper, source, note, made)
  return dict(zip(KEYS, entries, strict=True)) | fields


@functools.cache
def _here(argv: tuple[str, ...]) -> dict[str, Any]:
  """Returns `environment()`, computed once per command line."""
  del argv
  return environment()


def trained_in(folders: Iterable[str | os.PathLike[str]]) -> list[dict[str, Any]]:
  """Returns the environments in which finished runs were trained.

  Args:
    folders: directories of runs of `train_and_evaluate`.

  Returns:
    The different environments, each with the keys `command`, `commit`, `date`,
    `hardware` and `versions`.

  Raises:
    ValueError: a directory has no `environment.json`.

  Example:
    >>> trained_in([])
    []
  """
  found = []
  for folder in folders:
    parts = read_environment(pathlib.Path(folder)).get("parts", [])
    if not parts:
      raise ValueError(f"folders must have an environment.json, got {folder}.")
    for part in parts:
      run = {key: part[key] for key in RUN_KEYS}
      if run not in found:
        found.append(run)
  return found


def write_results(
  path: str | os.PathLike[str], name: str, rows: Sequence[Mapping[str, Any]]
) -> None:
  """Writes a results file, `{"name", "runs", "rows"}`.

  `runs` lists the environments that the rows were computed in, and each row's `runs`
  are indices of that list. The file is written atomically.

  Args:
    path: the path of the JSON file; its folder is created if needed.
    name: the name of the results, such as `second_order`.
    rows: rows from `row` or `read_rows`.

  Raises:
    ValueError: a row's keys are not `KEYS` and further ones of `FIELDS`, a run's are
      not `RUN_KEYS`, or a case and metric occur twice.

  Example:
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> write_results(f"{folder}/toy.json", "toy", [row("a", "seconds", 1.5)])
    >>> read_rows(f"{folder}/toy.json")[0]["mean"]
    1.5
  """
  seen = set()
  runs: list[dict[str, Any]] = []
  entries = []
  for entry in rows:
    names = tuple(entry)
    if names[: len(KEYS)] != KEYS or not set(names[len(KEYS) :]) <= set(FIELDS):
      raise ValueError(f"rows must have the keys {KEYS}, got {names}.")
    key = (entry["case"], entry["metric"])
    if key in seen:
      raise ValueError(f"rows must hold each case and metric once, got {key} twice.")
    seen.add(key)
    for run in entry["runs"]:
      if tuple(run) != RUN_KEYS:
        raise ValueError(f"runs must have the keys {RUN_KEYS}, got {tuple(run)}.")
      if run not in runs:
        runs.append(run)
    entries.append({**entry, "runs": [runs.index(run) for run in entry["runs"]]})
  whole = {"name": name, "runs": runs, "rows": entries}
  target = pathlib.Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  text = json.dumps(whole, indent=1, allow_nan=False) + "\n"
  partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
  partial.write_text(text)
  partial.replace(target)


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Reads the rows of a results file, with the environments that they were computed in.

  Args:
    path: the path of the results file.

  Returns:
    The rows, as `row` returned them; none if the file does not exist.

  Raises:
    ValueError: the file has no `runs`, as files of older versions.

  Example:
    >>> read_rows("no_such_file.json")
    []
  """
  file = pathlib.Path(path)
  if not file.exists():
    return []
  content = json.loads(file.read_text())
  if "runs" not in content:
    raise ValueError(f"path must be a results file with the key runs, got {path}.")
  return [
    {**entry, "runs": [content["runs"][i] for i in entry["runs"]]}
    for entry in content["rows"]
  ]


def merge_with_existing(
  rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]
) -> list[dict[str, Any]]:
  """Puts rows among those of an existing results file, for results made in parts.

  Args:
    rows: the new rows, which replace those of the same case and metric.
    path: the path of the results file; it need not exist.

  Returns:
    The existing rows in their order, each replaced by the new row of its case and
    metric, then the other new rows. Each has its own environments.

  Example:
    >>> import tempfile
    >>> file = f"{tempfile.mkdtemp()}/toy.json"
    >>> write_results(file, "toy", [row("a", "seconds", 1.5), row("b", "seconds", 3)])
    >>> new = [row("c", "seconds", 2), row("b", "seconds", 1)]
    >>> [(r["case"], r["mean"]) for r in merge_with_existing(new, file)]
    [('a', 1.5), ('b', 1.0), ('c', 2.0)]
  """
  new = {(r["case"], r["metric"]): dict(r) for r in rows}
  kept = [new.pop((r["case"], r["metric"]), r) for r in read_rows(path)]
  return [*kept, *new.values()]
