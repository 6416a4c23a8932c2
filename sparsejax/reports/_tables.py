"""The tables of a report, with one row per quantity and one column per run."""

import html
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsejax.analysis import method_name
from sparsejax.analysis.costs import forward_multiply_adds, sizes
from sparsejax.reports import _charts, _run
from sparsejax.reports._run import Found
from sparsejax.training import format_duration, format_percent

_NOTHING = "–"


def summary(runs: Sequence[Found]) -> str:
  """Formats the results of runs: accuracy, time, sizes and multiply-adds."""
  rows: dict[str, list[str]] = {}
  for run in runs:
    for name, value in _facts(run).items():
      rows.setdefault(name, []).append(value)
  kept = {n: v for n, v in rows.items() if any(x != _NOTHING for x in v)}
  return card(_table(runs, kept), "card fit")


def layers(runs: Sequence[Found]) -> str:
  """Formats shape, weights and density of each layer; long tables are collapsed."""
  parts = []
  for run in runs:
    if not run.masks:
      continue
    lines = []
    for name, mask in run.masks.items():
      live = int(mask.sum())
      ops = f"{run.uses[name] * live:,}" if name in run.uses else _NOTHING
      shape = "×".join(map(str, mask.shape))
      cells = (
        name,
        shape,
        f"{mask.size:,}",
        f"{live:,}",
        f"{live / mask.size:.4f}",
        ops,
      )
      lines.append("".join(f"<td>{escaped(cell)}</td>" for cell in cells))
    # Collapse the table if there are several runs or many layers.
    head = ("layer", "shape", "weights", "live", "density", "multiply-adds")
    names = "".join(f"<th>{h}</th>" for h in head)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    table = (
      f'<div class="scroll"><table><thead><tr>{names}</tr></thead>'
      f"<tbody>{body}</tbody></table></div>"
    )
    if len(runs) > 1 or len(lines) > 12:
      table = f"<details><summary>{escaped(run.name)}</summary>{table}</details>"
    parts.append(table)
  return card("".join(parts)) if parts else ""


def config(runs: Sequence[Found]) -> str:
  """Formats the configs of runs; fields that differ between runs come first."""
  names = list(dict.fromkeys(name for run in runs for name in run.config))
  rows = {n: [_value(run.config.get(n, _NOTHING)) for run in runs] for n in names}
  if len(runs) == 1:
    return card(_table(runs, rows, text=True, head=False))
  differ = {n: v for n, v in rows.items() if len(set(v)) > 1}
  same = {n: v[:1] for n, v in rows.items() if n not in differ}
  first = (
    _table(runs, differ, text=True) if differ else "<p>The runs are of one config.</p>"
  )
  rest = _table(runs[:1], same, text=True, head=False)
  note = "what all of them have in common"
  return card(f"{first}<details><summary>{note}</summary>{rest}</details>")


def environment(runs: Sequence[Found]) -> str:
  """Formats the command, commit, date, hardware and versions of runs."""
  rows: dict[str, list[str]] = {}
  for run in runs:
    parts = run.environment.get("parts", [])
    first: dict[str, Any] = parts[0] if parts else {}
    versions = first.get("versions", {})
    facts = {
      "command": first.get("command", "not noted by the version that trained it"),
      "commit": (first.get("commit") or _NOTHING)[:13],
      "date": first.get("date", _NOTHING),
      "hardware": first.get("hardware", _NOTHING),
      "versions": ", ".join(f"{k} {v}" for k, v in versions.items()) or _NOTHING,
      "went on at steps": ", ".join(f"{p['step']:,}" for p in parts[1:]) or _NOTHING,
    }
    for name, value in facts.items():
      rows.setdefault(name, []).append(value)
  kept = {n: v for n, v in rows.items() if any(x != _NOTHING for x in v)}
  return card(_table(runs, kept, text=True, head=len(runs) > 1))


def card(body: str, kind: str = "card") -> str:
  """Wraps HTML in a `<div>` of the given class."""
  return f'<div class="{kind}">{body}</div>'


def escaped(value: str) -> str:
  """Escapes text for HTML."""
  return html.escape(value, quote=True)


def _facts(run: Found) -> dict[str, str]:
  # Method, density, accuracies and time; unfinished runs have no test results.
  c, done = run.config, run.summary
  facts = {"method": method_name(c["method"])}
  live, size = sum(run.live.values()), sum(run.sizes.values())
  facts["density"] = f"{live / size:.4g}" if size else f"{c['density']:.4g}"
  facts["test accuracy"] = facts["test loss"] = _NOTHING
  if done:
    right = 1 - np.asarray(done["test_error_percent"]) / 100
    facts["test accuracy"] = format_percent(right)
    facts["test loss"] = f"{np.mean(done['test_loss']):.4f}"
  seen = [r for r in run.records if r.get("validation_accuracy") is not None]
  facts["validation accuracy"] = (
    format_percent(np.atleast_1d(np.array(seen[-1]["validation_accuracy"], float)))
    if seen
    else _NOTHING
  )
  last = run.records[-1]["step"] if run.records else 0
  facts["steps"] = f"{last:,}" + ("" if done else " (not finished)")
  facts["time"] = format_duration(done["seconds"]) if done else _NOTHING
  # Parameters, bytes and multiply-adds, as far as the checkpoint and the costs exist.
  formats = ("dense", "one bit a mask", "sparse rows")
  names = ("parameters", "live parameters", *(f"bytes: {name}" for name in formats))
  facts |= dict.fromkeys(names, _NOTHING)
  if run.params and size:
    found = sizes(run.params, {name: run.masks.get(name) for name in run.params})
    counts = (f"{found.parameters:,}", f"{found.live:,}")
    facts |= zip(names, (*counts, *map(_bytes, found[2:])), strict=True)
  facts |= dict.fromkeys(("multiply-adds an image", "to infer", "to train"), _NOTHING)
  cost = _run.costs(run)
  if cost:
    once = forward_multiply_adds(run.uses, run.live)
    facts["multiply-adds an image"] = f"{once:,.0f}"
    facts["to infer"], facts["to train"] = (f"{part:.3g} × dense" for part in cost)
  skipped = done.get("skipped_steps", []), done.get("skipped_mask_updates", [])
  for name, counts in zip(
    ("steps skipped", "mask updates skipped"), skipped, strict=True
  ):
    facts[name] = str(sum(counts)) if any(counts) else _NOTHING
  return facts


def _table(
  runs: Sequence[Found],
  rows: dict[str, list[str]],
  text: bool = False,
  head: bool | None = None,
) -> str:
  """Formats a table with one row per quantity and one column per run."""
  top = ""
  if len(runs) > 1 if head is None else head:
    cells = "".join(
      f'<th{" class=text" if text else ""}><i style="background:{color}"></i>'
      f"{escaped(run.name)}</th>"
      for run, color in zip(runs, _charts.run_colors(len(runs)), strict=True)
    )
    top = f"<thead><tr><th></th>{cells}</tr></thead>"
  kind = ' class="text"' if text else ""
  body = "".join(
    f"<tr><td>{escaped(name)}</td>"
    + "".join(f"<td{kind}>{escaped(value)}</td>" for value in values)
    + "</tr>"
    for name, values in rows.items()
  )
  return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def _value(value: Any) -> str:
  return value if isinstance(value, str) and value else json.dumps(value)


def _bytes(count: float) -> str:
  for unit in ("B", "kB", "MB"):
    if count < 1000:
      return f"{count:.3g} {unit}"
    count /= 1000
  return f"{count:.3g} GB"
