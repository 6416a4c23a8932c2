"""The tables of a report: rows of texts, one column per group of runs."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsejax.analysis import method_name
from sparsejax.analysis.costs import forward_multiply_adds, sizes
from sparsejax.reports import _run
from sparsejax.reports._run import Found
from sparsejax.training import format_duration

Group = Sequence[Found]  # runs that differ in their seeds alone
Rows = dict[str, list[str]]  # one text per group, by the name of the quantity

_NOTHING = "–"
LAYER_COLUMNS = ("layer", "shape", "weights", "live", "density", "multiply-adds")


def summary(groups: Sequence[Group]) -> Rows:
  """Formats the results of groups: accuracy, time, sizes and multiply-adds."""
  return _rows([_facts(group) for group in groups])


def layers(run: Found) -> list[tuple[str, ...]]:
  """Formats each sparsified layer of a run, with the columns `LAYER_COLUMNS`."""
  lines = []
  for name, mask in run.masks.items():
    live = int(mask.sum())
    uses = run.uses.get(name)
    lines.append(
      (
        name,
        "×".join(map(str, mask.shape)),
        f"{mask.size:,}",
        f"{live:,}",
        f"{live / mask.size:.4f}",
        _NOTHING if uses is None else f"{uses * live:,}",
      )
    )
  return lines


def config(groups: Sequence[Group]) -> tuple[Rows, Rows]:
  """Formats the fields that differ between the configs of groups, then the others."""
  configs = [{k: _text(v) for k, v in group[0].config.items()} for group in groups]
  rows = _rows(configs)
  differ = {name: texts for name, texts in rows.items() if len(set(texts)) > 1}
  return differ, {name: texts[:1] for name, texts in rows.items() if name not in differ}


def environment(groups: Sequence[Group]) -> Rows:
  """Formats the commit, date, hardware and versions of the first run of each group."""
  facts = []
  for run, *_ in groups:
    parts = run.environment.get("parts", [])
    first: dict[str, Any] = parts[0] if parts else {}
    versions = first.get("versions", {})
    facts.append(
      {
        "commit": (first.get("commit") or _NOTHING)[:13],
        "date": first.get("date", _NOTHING),
        "hardware": first.get("hardware", _NOTHING),
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()) or _NOTHING,
        "resumed at": ", ".join(f"{p['step']:,}" for p in parts[1:]) or _NOTHING,
      }
    )
  return _rows(facts)


def commands(groups: Sequence[Group]) -> dict[str, list[int]]:
  """Returns the commands that trained the runs, with the numbers of their groups."""
  found: dict[str, list[int]] = {}
  for i, group in enumerate(groups):
    for run in group:
      for part in run.environment.get("parts", []):
        numbers = found.setdefault(part["command"], [])
        numbers += [i] if i not in numbers else []
  return found


def _rows(columns: Sequence[dict[str, str]]) -> Rows:
  """Makes rows of columns, and leaves out those that no column has a text for."""
  names = dict.fromkeys(name for column in columns for name in column)
  rows = {name: [c.get(name, _NOTHING) for c in columns] for name in names}
  return {name: texts for name, texts in rows.items() if set(texts) != {_NOTHING}}


def _facts(group: Group) -> dict[str, str]:
  """Returns the facts of a group in their order; those that are not known are left out.

  Runs that are not finished have no test results. Sizes and multiply-adds need a
  checkpoint; they are those of the first seed.
  """
  first = group[0]
  done = [run.summary for run in group if run.summary]
  seeds = sum(run.config.get("num_seeds", 1) for run in group)
  live, size = sum(first.live.values()), sum(first.sizes.values())
  facts = {
    "method": method_name(first.config["method"]),
    "density": f"{live / size if size else first.config['density']:.4g}",
  }
  if seeds > 1:
    facts["seeds"] = str(seeds)
  if done:
    errors = np.concatenate([np.atleast_1d(s["test_error_percent"]) for s in done])
    facts["test accuracy"] = _percent(100 - errors)
    losses = np.concatenate([np.atleast_1d(s["test_loss"]) for s in done])
    facts["test loss"] = f"{np.mean(losses):.4f}"
  seen = [_last(run, "validation_accuracy") for run in group]
  seen = np.array([value for values in seen for value in values])
  if len(seen):
    facts["validation accuracy"] = _percent(100 * seen)
  steps = sorted({run.records[-1]["step"] for run in group if run.records})
  going = sum(not run.summary for run in group)
  facts["steps"] = " to ".join(f"{n:,}" for n in (steps[:1] + steps[1:][-1:]) or [0])
  if going:
    facts["steps"] += " (not finished)" if len(group) == 1 else f" ({going} unfinished)"
  # The first record of a run includes the time to compile.
  speeds = [_values(run, "steps_per_second") for run in group]
  speeds = [v for several in speeds for v in several[1:] or several if v > 0]
  if speeds:
    facts["step time"] = f"{1000 / np.median(speeds):.3g} ms"
  if done:
    facts["time"] = format_duration(sum(s["seconds"] for s in done))
  blocks = _run.optional("Live blocks", lambda: _run.live_blocks(first))
  if blocks is not None:
    facts["live blocks"] = f"{100 * blocks:.3g} %"
  facts |= _run.optional("Sizes", lambda: _sizes(first), {})
  cost = _run.costs(first)
  if cost:
    facts["multiply-adds per example"] = (
      f"{forward_multiply_adds(first.uses, first.live):,.0f}"
    )
    for name, part in zip(("to infer", "to train"), cost, strict=True):
      facts[f"multiply-adds {name}"] = f"{part:.3g} × dense"
  for name in ("skipped_steps", "skipped_mask_updates"):
    count = sum(np.sum(s.get(name, 0)) for s in done)
    if count:
      facts[name.replace("_", " ")] = f"{count:,.0f}"
  return facts


def _sizes(run: Found) -> dict[str, str]:
  if not run.params or not run.masks:
    return {}
  found = sizes(run.params, {name: run.masks.get(name) for name in run.params})
  names = ("bytes: dense", "bytes: one bit per mask", "bytes: sparse rows")
  return {
    "parameters": f"{found.parameters:,}",
    "live parameters": f"{found.live:,}",
    **dict(zip(names, map(_bytes, found[2:]), strict=True)),
  }


def _percent(values: np.ndarray) -> str:
  """Formats a mean and its standard error; the table has little room for words."""
  if len(values) == 1:
    return f"{values[0]:.2f} %"
  return f"{values.mean():.2f} ± {values.std(ddof=1) / len(values) ** 0.5:.2f} %"


def _values(run: Found, name: str) -> list[Any]:
  return [r[name] for r in run.records if r.get(name) is not None]


def _last(run: Found, name: str) -> list[float]:
  """Returns a field of the last record that has it, one value per seed."""
  values = _values(run, name)
  return np.atleast_1d(np.array(values[-1], float)).tolist() if values else []


def _text(value: Any) -> str:
  return value if isinstance(value, str) and value else json.dumps(value)


def _bytes(count: float) -> str:
  for unit in ("B", "kB", "MB"):
    if count < 1000:
      return f"{count:.3g} {unit}"
    count /= 1000
  return f"{count:.3g} GB"
