"""`report.html`: a self-contained page that compares runs."""

import datetime
import importlib.resources
import pathlib
from collections.abc import Sequence

import numpy as np

from sparsejax.analysis import input_connectivity, mask_image, run_title
from sparsejax.reports import _charts, _images, _tables
from sparsejax.reports._run import Found
from sparsejax.reports._tables import escaped
from sparsejax.training import write_text

FILE = "report.html"


def write(out: pathlib.Path | str, runs: Sequence[Found]) -> None:
  """Writes the page of some runs.

  Args:
    out: the path of the file; its folder is created if needed.
    runs: the runs, from `read_run`.
  """
  out = pathlib.Path(out)
  out.parent.mkdir(parents=True, exist_ok=True)
  write_text(out, page(runs))


def page(runs: Sequence[Found]) -> str:
  """Returns the page of some runs.

  Args:
    runs: the runs, from `read_run`; at least one.

  Returns:
    A complete HTML document with style, script and images inlined.
  """
  titles = list(dict.fromkeys(run_title(run.config) for run in runs))
  title = titles[0] if len(titles) == 1 else f"{len(runs)} runs"
  style, script = (
    importlib.resources.files("sparsejax.reports").joinpath(f"page.{kind}").read_text()
    for kind in ("css", "js")
  )
  today = datetime.datetime.now(datetime.UTC).date().isoformat()
  under = runs[0].name if len(runs) == 1 else ", ".join(run.name for run in runs)
  sections = [
    _section("What it came to", _tables.summary(runs)),
    _section("Curves", _grid("charts", _charts.curves(runs))),
    _section("Masks over time", _moves(runs)),
    _section("Masks", _masks(runs)),
    _section("Layers", _tables.layers(runs)),
    _section("Config", _tables.config(runs)),
    _section("Environment", _tables.environment(runs)),
  ]
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{escaped(title)} · SparseJAX</title><style>{style}</style></head>"
    "<body>"
    f"<header><h1>{escaped(title)}</h1>"
    f'<p class="faint">{escaped(under)} · drawn {today}</p></header>'
    f'<main>{"".join(sections)}</main><div id="tip"></div>'
    f"<script>{script}</script></body></html>\n"
  )


def _moves(runs: Sequence[Found]) -> str:
  budgets = _charts.budgets(runs)
  charts = _charts.moves(runs)
  if len(runs) == 1:
    return _grid("charts", [*budgets, *charts])
  return _grid("charts", charts) + "<p></p>" + _grid("charts", budgets)


def _masks(runs: Sequence[Found]) -> str:
  cells = []
  for run in runs:
    head = escaped(run.name) if len(runs) > 1 else ""
    if run.step is not None:
      head += f' <small class="faint">step {run.step:,}</small>'
    pictures = "".join(_pictures(run)) or '<p class="none">no checkpoint to read</p>'
    cells.append(f'<div class="card"><h3>{head}</h3>{pictures}</div>')
  if len(runs) == 1 and runs[0].masks:
    # A single run uses the whole width, with its images next to each other.
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
      values = _images.filters(run.params[name], mask)
      yield _picture(values, name, f"{n} filters; blank: dead")
      continue
    if shape and mask.ndim == 2 and mask.shape[0] == int(np.prod(shape)):
      counts = input_connectivity(mask, shape).sum(-1)
      text = f"live weights of each input pixel, 0 to {counts.max()}"
      yield _picture(counts / max(counts.max(), 1), name, text)
      continue
    if mask.ndim < 2:
      continue
    values = mask_image(mask)
    if values.shape[0] > 2 * values.shape[1]:
      values, text = values.T, "outputs down, inputs across"
    else:
      text = "inputs down, outputs across"
    top = values.max() or 1.0
    yield _picture(values / top, name, f"{text}; densest {top:.2g}")


def _picture(values: np.ndarray, name: str, text: str) -> str:
  rows, columns = values.shape
  name = escaped(name.removesuffix("/kernel"))
  return (
    f"<figure><figcaption>{name} <small>{escaped(text)}</small></figcaption>"
    f'<img alt="{name}" width="{columns}" height="{rows}"'
    f' style="height:auto;max-width:{min(440, 16 * columns)}px"'
    f' src="{_images.png(values)}"></figure>'
  )


def _section(name: str, body: str) -> str:
  return f"<section><h2>{name}</h2>{body}</section>" if body else ""


def _grid(kind: str, cells: Sequence[str]) -> str:
  return f'<div class="grid {kind}">{"".join(cells)}</div>'
