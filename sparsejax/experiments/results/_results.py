"""Results files: figures that a script made, with all that made them."""

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsejax.training import environment

KEYS = ("case", "metric", "mean", "sem", "n", "values", "paper", "source", "note")


def row(
  case: str,
  metric: str,
  values: float | Sequence[float],
  *,
  paper: float | None = None,
  source: str = "",
  note: str = "",
) -> dict[str, Any]:
  """One row of a results file, with mean and standard error computed from the values.

  `sem = std(values, ddof=1) / sqrt(n)`; None for a single value.

  Args:
    case: a path such as `lenet300/sparse_momentum/density=0.05`.
    metric: with its unit in the name, such as `test_error_percent`.
    values: one a seed, or a single number; finite.
    paper: the published value.
    source: where that stands.
    note: what else a reader must know.

  Returns:
    A dict with the keys `KEYS`.

  Raises:
    ValueError: there is no value, or one is not finite.

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
  entries = (case, metric, mean, sem, n, several, paper, source, note)
  return dict(zip(KEYS, entries, strict=True))


def write_results(
  path: str | os.PathLike[str], name: str, rows: Sequence[Mapping[str, Any]]
) -> None:
  """Writes `{"name", "command", "commit", "date", "hardware", "versions", "rows"}`.

  The command is the one that runs now, folders cut from absolute paths; the file
  appears whole or not at all.

  Args:
    path: of the JSON file; its folder is made.
    name: such as `second_order`.
    rows: from `row`.

  Raises:
    ValueError: a row's keys are not `KEYS`, or a case and metric stand there twice.

  Example:
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> write_results(f"{folder}/toy.json", "toy", [row("a", "seconds", 1.5)])
    >>> json.loads(pathlib.Path(folder, "toy.json").read_text())["rows"][0]["mean"]
    1.5
  """
  seen = set()
  for entry in rows:
    if tuple(entry) != KEYS:
      raise ValueError(f"rows must have the keys {KEYS}, got {tuple(entry)}.")
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
  """The rows, then those that a results file holds besides, for a table made in parts.

  Args:
    rows: of what was made now.
    path: of the results file; it may not be there yet.

  Returns:
    Rows, the held ones with a note of the commit and the hardware that made them.

  Example:
    >>> import tempfile
    >>> file = f"{tempfile.mkdtemp()}/toy.json"
    >>> write_results(file, "toy", [row("a", "seconds", 1.5), row("b", "seconds", 3)])
    >>> rows = merge_with_existing([row("a", "seconds", 1.0)], file)
    >>> [(r["case"], r["mean"], "at commit" in r["note"]) for r in rows]
    [('a', 1.0, False), ('b', 3.0, True)]
  """
  mine = {(r["case"], r["metric"]) for r in rows}
  file = pathlib.Path(path)
  held = annotate_provenance(json.loads(file.read_text())) if file.exists() else []
  kept = [r for r in held if (r["case"], r["metric"]) not in mine]
  return [*map(dict, rows), *kept]


def annotate_provenance(content: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The rows of a results file, each with a note of what it was made by.

  Args:
    content: of the file.

  Returns:
    Its rows; those that have such a note stay as they are.

  Example:
    >>> content = {"commit": None, "hardware": "an abacus", "rows": [row("a", "b", 1)]}
    >>> annotate_provenance(content)[0]["note"]
    'at commit unknown, an abacus'
  """
  where = f"at commit {(content['commit'] or 'unknown')[:12]}, {content['hardware']}"
  note = lambda r: "; ".join(filter(None, (r["note"], where)))
  return [
    dict(r) if "at commit" in r["note"] else {**r, "note": note(r)}
    for r in content["rows"]
  ]
