"""Writing and merging of results files, which store numbers and their provenance."""

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsejax.training import environment

KEYS = ("case", "metric", "mean", "sem", "n", "values", "paper", "source", "note")
# What programs read back from a row, where its script records it: of comparisons the
# first seven, and of rows from another file where they were made.
FIELDS = (
  "model",
  "method",
  "density",
  "steps",
  "seeds",
  "commits",
  "multiply_adds",
  "provenance",
)


def row(
  case: str,
  metric: str,
  values: float | Sequence[float],
  *,
  paper: float | None = None,
  source: str = "",
  note: str = "",
  **fields: Any,
) -> dict[str, Any]:
  """Creates a row of a results file, with the mean and standard error of its values.

  `sem = std(values, ddof=1) / sqrt(n)`; None for a single value.

  Args:
    case: a path such as `lenet300/sparse_momentum/density=0.05`.
    metric: the metric's name, including its unit, such as `test_error_percent`.
    values: one finite number per seed, or a single number.
    paper: the published value.
    source: the source of the published value.
    note: further information for the reader; no program reads it.
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
  entries = (case, metric, mean, sem, n, several, paper, source, note)
  return dict(zip(KEYS, entries, strict=True)) | fields


def write_results(
  path: str | os.PathLike[str], name: str, rows: Sequence[Mapping[str, Any]]
) -> None:
  """Writes `{"name", "command", "commit", "date", "hardware", "versions", "rows"}`.

  The command is that of the current process, with folders removed from absolute paths.
  The file is written atomically.

  Args:
    path: the path of the JSON file; its folder is created if needed.
    name: the name of the results, such as `second_order`.
    rows: rows from `row`.

  Raises:
    ValueError: a row's keys are not `KEYS` and further ones of `FIELDS`, or a case and
      metric occur twice.

  Example:
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> write_results(f"{folder}/toy.json", "toy", [row("a", "seconds", 1.5)])
    >>> json.loads(pathlib.Path(folder, "toy.json").read_text())["rows"][0]["mean"]
    1.5
  """
  seen = set()
  for entry in rows:
    names = tuple(entry)
    if names[: len(KEYS)] != KEYS or not set(names[len(KEYS) :]) <= set(FIELDS):
      raise ValueError(f"rows must have the keys {KEYS}, got {names}.")
    key = (entry["case"], entry["metric"])
    if key in seen:
      raise ValueError(f"rows must hold each case and metric once, got {key} twice.")
    seen.add(key)
  whole = {"name": name, **environment(), "rows": [dict(entry) for entry in rows]}
  target = pathlib.Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  text = json.dumps(whole, indent=1, allow_nan=False) + "\n"
  partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
  partial.write_text(text)
  partial.replace(target)


def merge_with_existing(
  rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]
) -> list[dict[str, Any]]:
  """Appends the other rows of an existing results file, for results made in parts.

  Args:
    rows: the new rows, which replace those of the same case and metric.
    path: the path of the results file; it need not exist.

  Returns:
    The new rows, then the existing ones, each with its `provenance`.

  Example:
    >>> import tempfile
    >>> file = f"{tempfile.mkdtemp()}/toy.json"
    >>> write_results(file, "toy", [row("a", "seconds", 1.5), row("b", "seconds", 3)])
    >>> rows = merge_with_existing([row("a", "seconds", 1.0)], file)
    >>> [(r["case"], r["mean"], "provenance" in r) for r in rows]
    [('a', 1.0, False), ('b', 3.0, True)]
  """
  mine = {(r["case"], r["metric"]) for r in rows}
  file = pathlib.Path(path)
  held = annotate_provenance(json.loads(file.read_text())) if file.exists() else []
  kept = [r for r in held if (r["case"], r["metric"]) not in mine]
  return [*map(dict, rows), *kept]


def annotate_provenance(content: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Adds to each row of a results file the commit and hardware that made it.

  Args:
    content: the content of the file.

  Returns:
    The rows, with the field `provenance`, `{"commit", "hardware"}`; rows that have it
    already are unchanged.

  Example:
    >>> content = {"commit": None, "hardware": "an abacus", "rows": [row("a", "b", 1)]}
    >>> annotate_provenance(content)[0]["provenance"]
    {'commit': 'unknown', 'hardware': 'an abacus'}
  """
  commit = (content["commit"] or "unknown")[:12]
  here = {"commit": commit, "hardware": content["hardware"]}
  return [dict(r) | {"provenance": r.get("provenance", here)} for r in content["rows"]]
