"""`report.html`: runs side by side on one page that needs nothing else."""

import datetime
import html
import importlib.resources
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsejax.analysis import multiply_adds, tickets
from sparsejax.analysis.sizes import sizes
from sparsejax.training import (
  progress,
  report_charts,
  report_images,
  report_run,
  report_style,
  result,
  workdir,
)
from sparsejax.training.report_run import Found

FILE = "report.html"
_NOTHING = "–"


def write(out: pathlib.Path | str, runs: Sequence[Found]) -> None:
  """Writes the page of some runs.

  Args:
    out: the file; its folder is made.
    runs: of `report_run.read`.
  """
  out = pathlib.Path(out)
  out.parent.mkdir(parents=True, exist_ok=True)
  workdir.write_text(out, page(runs))


def page(runs: Sequence[Found]) -> str:
  """Returns the page of some runs.

  Args:
    runs: of `report_run.read`, at least one.

  Returns:
    A whole HTML document: style, script and pictures are inside.
  """
  titles = list(dict.fromkeys(report_style.title(run.config) for run in runs))
  title = titles[0] if len(titles) == 1 else f"{len(runs)} runs"
  style, script = (
    importlib.resources.files("sparsejax.training")
    .joinpath(f"report_page.{kind}")
    .read_text()
    for kind in ("css", "js")
  )
  today = datetime.datetime.now(datetime.UTC).date().isoformat()
  under = runs[0].name if len(runs) == 1 else ", ".join(run.name for run in runs)
  sections = [
    _section("What it came to", _summary(runs)),
    _section("Curves", _grid("charts", report_charts.curves(runs))),
    _section("Masks over time", _moves(runs)),
    _section("Masks", _masks(runs)),
    _section("Layers", _layers(runs)),
    _section("Config", _config(runs)),
    _section("Environment", _environment(runs)),
  ]
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{_text(title)} · SparseJAX</title><style>{style}</style></head><body>"
    f"<header><h1>{_text(title)}</h1>"
    f'<p class="faint">{_text(under)} · drawn {today}</p></header>'
    f'<main>{"".join(sections)}</main><div id="tip"></div>'
    f"<script>{script}</script></body></html>\n"
  )


def _summary(runs: Sequence[Found]) -> str:
  rows: dict[str, list[str]] = {}
  for run in runs:
    for name, value in _facts(run).items():
      rows.setdefault(name, []).append(value)
  kept = {n: v for n, v in rows.items() if any(x != _NOTHING for x in v)}
  return _card(_table(runs, kept), "card fit")


def _facts(run: Found) -> dict[str, str]:
  c, done = run.config, run.summary
  facts = {"method": report_style.method_name(c["method"])}
  live, size = sum(run.live.values()), sum(run.sizes.values())
  facts["density"] = f"{live / size:.4g}" if size else f"{c['density']:.4g}"
  facts["test accuracy"] = facts["test loss"] = _NOTHING
  if done:
    right = 1 - np.asarray(done["test_error_percent"]) / 100
    facts["test accuracy"] = result.percent(right)
    facts["test loss"] = f"{np.mean(done['test_loss']):.4f}"
  seen = [r for r in run.records if r.get("validation_accuracy") is not None]
  facts["validation accuracy"] = (
    result.percent(np.atleast_1d(np.array(seen[-1]["validation_accuracy"], float)))
    if seen
    else _NOTHING
  )
  last = run.records[-1]["step"] if run.records else 0
  facts["steps"] = f"{last:,}" + ("" if done else " (not finished)")
  facts["time"] = progress.duration(done["seconds"]) if done else _NOTHING
  formats = ("dense", "one bit a mask", "sparse rows")
  names = ("parameters", "live parameters", *(f"bytes: {name}" for name in formats))
  facts |= dict.fromkeys(names, _NOTHING)
  if run.params and size:
    found = sizes(run.params, {name: run.masks.get(name) for name in run.params})
    counts = (f"{found.parameters:,}", f"{found.live:,}")
    facts |= zip(names, (*counts, *map(_bytes, found[2:])), strict=True)
  facts |= dict.fromkeys(("multiply-adds an image", "to infer", "to train"), _NOTHING)
  cost = report_run.costs(run)
  if cost:
    once = multiply_adds.forward(run.uses, run.live)
    facts["multiply-adds an image"] = f"{once:,.0f}"
    facts["to infer"], facts["to train"] = (f"{part:.3g} × dense" for part in cost)
  skipped = done.get("skipped_steps", []), done.get("skipped_mask_updates", [])
  for name, counts in zip(
    ("steps skipped", "mask updates skipped"), skipped, strict=True
  ):
    facts[name] = str(sum(counts)) if any(counts) else _NOTHING
  return facts


def _moves(runs: Sequence[Found]) -> str:
  budgets = report_charts.budgets(runs)
  charts = report_charts.moves(runs)
  if len(runs) == 1:
    return _grid("charts", [*budgets, *charts])
  return _grid("charts", charts) + "<p></p>" + _grid("charts", budgets)


def _masks(runs: Sequence[Found]) -> str:
  cells = []
  for run in runs:
    head = _text(run.name) if len(runs) > 1 else ""
    if run.step is not None:
      head += f' <small class="faint">step {run.step:,}</small>'
    pictures = "".join(_pictures(run)) or '<p class="none">no checkpoint to read</p>'
    cells.append(f'<div class="card"><h3>{head}</h3>{pictures}</div>')
  if len(runs) == 1 and runs[0].masks:
    # One run has the whole width: its pictures stand beside each other.
    return _grid("runs", list(_pictures(runs[0])))
  return _grid("runs", cells)


def _pictures(run: Found, most: int = 7):
  shape = run.image_shape
  for i, (name, mask) in enumerate(run.masks.items()):
    if i == most:
      more = len(run.masks) - most
      yield f'<p class="none">and {more} layers more: see their table</p>'
      return
    if mask.ndim == 4 and mask.shape[2] in (1, 3):
      n = min(mask.shape[-1], 64)
      values = report_images.filters(run.params[name], mask)
      yield _picture(values, name, f"{n} filters; blank: dead")
      continue
    if shape and mask.ndim == 2 and mask.shape[0] == int(np.prod(shape)):
      counts = tickets.input_connectivity(mask, shape).sum(-1)
      text = f"live weights of each input pixel, 0 to {counts.max()}"
      yield _picture(counts / max(counts.max(), 1), name, text)
      continue
    if mask.ndim < 2:
      continue
    values = report_images.connections(mask)
    if values.shape[0] > 2 * values.shape[1]:
      values, text = values.T, "outputs down, inputs across"
    else:
      text = "inputs down, outputs across"
    top = values.max() or 1.0
    yield _picture(values / top, name, f"{text}; densest {top:.2g}")


def _picture(values: np.ndarray, name: str, text: str) -> str:
  rows, columns = values.shape
  name = _text(name.removesuffix("/kernel"))
  return (
    f"<figure><figcaption>{name} <small>{_text(text)}</small></figcaption>"
    f'<img alt="{name}" width="{columns}" height="{rows}"'
    f' style="height:auto;max-width:{min(440, 16 * columns)}px"'
    f' src="{report_images.png(values)}"></figure>'
  )


def _layers(runs: Sequence[Found]) -> str:
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
      lines.append("".join(f"<td>{_text(cell)}</td>" for cell in cells))
    head = ("layer", "shape", "weights", "live", "density", "multiply-adds")
    names = "".join(f"<th>{h}</th>" for h in head)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    table = (
      f'<div class="scroll"><table><thead><tr>{names}</tr></thead>'
      f"<tbody>{body}</tbody></table></div>"
    )
    if len(runs) > 1 or len(lines) > 12:
      table = f"<details><summary>{_text(run.name)}</summary>{table}</details>"
    parts.append(table)
  return _card("".join(parts)) if parts else ""


def _config(runs: Sequence[Found]) -> str:
  names = list(dict.fromkeys(name for run in runs for name in run.config))
  rows = {n: [_value(run.config.get(n, _NOTHING)) for run in runs] for n in names}
  if len(runs) == 1:
    return _card(_table(runs, rows, text=True, head=False))
  differ = {n: v for n, v in rows.items() if len(set(v)) > 1}
  same = {n: v[:1] for n, v in rows.items() if n not in differ}
  first = (
    _table(runs, differ, text=True) if differ else "<p>The runs are of one config.</p>"
  )
  rest = _table(runs[:1], same, text=True, head=False)
  note = "what all of them have in common"
  return _card(f"{first}<details><summary>{note}</summary>{rest}</details>")


def _environment(runs: Sequence[Found]) -> str:
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
  return _card(_table(runs, kept, text=True, head=len(runs) > 1))


def _table(
  runs: Sequence[Found],
  rows: dict[str, list[str]],
  text: bool = False,
  head: bool | None = None,
) -> str:
  """A row a quantity, a column a run."""
  top = ""
  if len(runs) > 1 if head is None else head:
    cells = "".join(
      f'<th{" class=text" if text else ""}><i style="background:{color}"></i>'
      f"{_text(run.name)}</th>"
      for run, color in zip(runs, report_charts.run_colors(len(runs)), strict=True)
    )
    top = f"<thead><tr><th></th>{cells}</tr></thead>"
  kind = ' class="text"' if text else ""
  body = "".join(
    f"<tr><td>{_text(name)}</td>"
    + "".join(f"<td{kind}>{_text(value)}</td>" for value in values)
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


def _section(name: str, body: str) -> str:
  return f"<section><h2>{name}</h2>{body}</section>" if body else ""


def _grid(kind: str, cells: Sequence[str]) -> str:
  return f'<div class="grid {kind}">{"".join(cells)}</div>'


def _card(body: str, kind: str = "card") -> str:
  return f'<div class="{kind}">{body}</div>'


def _text(value: str) -> str:
  return html.escape(value, quote=True)
