"""`report.html`: a self-contained page that compares runs."""

import datetime
import itertools
import pathlib
from collections.abc import Sequence

import jinja2
import plotly.io
import plotly.offline

from sparsejax.analysis import COLORS, run_title
from sparsejax.reports import _charts, _images, _run, _tables
from sparsejax.reports._run import Found
from sparsejax.training import write_text

FILE = "report.html"
_TEMPLATE = pathlib.Path(__file__).with_name("page.html")


def write(out: pathlib.Path | str, runs: Sequence[Found]) -> None:
  """Writes the page of some runs.

  Args:
    out: the path of the file; its folder is created if needed.
    runs: the runs, from `read_run`.
  """
  out = pathlib.Path(out)
  out.parent.mkdir(parents=True, exist_ok=True)
  write_text(out, page(runs))


def page(runs: Sequence[Found], script: str | None = None) -> str:
  """Returns the page of some runs; those that differ in their seeds alone are averaged.

  A part that cannot be made is left out, and the reason is logged.

  Args:
    runs: the runs, from `read_run`; at least one.
    script: the JavaScript that draws the charts; by default plotly's.

  Returns:
    A complete HTML document with style, script and images inlined.
  """
  groups = _run.group(runs)
  firsts = [group[0] for group in groups]
  titles = list(dict.fromkeys(run_title(run.config) for run in firsts))
  numbers = itertools.count()

  def drawn(what, charts):
    found = _run.optional(what, lambda: charts(groups), [])
    return [(c.title, c.note, _html(c.figure, next(numbers))) for c in found]

  def table(what, rows, default=()):
    return _run.optional(what, lambda: rows(groups), default)

  environment = jinja2.Environment(
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  return environment.from_string(_TEMPLATE.read_text()).render(
    title=titles[0] if len(titles) == 1 else f"{len(groups)} runs",
    today=datetime.datetime.now(datetime.UTC).date().isoformat(),
    plotly=plotly.offline.get_plotlyjs() if script is None else script,
    names=[run.name for run in firsts],
    seeds=[sum(run.config.get("num_seeds", 1) for run in group) for group in groups],
    steps=[run.step for run in firsts],
    colors=COLORS,
    commands=table("Commands", _tables.commands, {}),
    summary=table("Results", _tables.summary, {}),
    curves=drawn("Curves", _charts.curves),
    masks=drawn("Charts of masks", _charts.masks),
    budgets=drawn("Charts of layers", _charts.layers),
    pictures=[
      _run.optional("Images", lambda run=run: list(_images.pictures(run)), [])
      for run in firsts
    ],
    layer_columns=_tables.LAYER_COLUMNS,
    layers=[
      _run.optional("Layers", lambda run=run: _tables.layers(run), []) for run in firsts
    ],
    config=table("Configs", _tables.config, ({}, {})),
    environment=table("Environments", _tables.environment, {}),
  )


def _html(figure, number: int) -> str:
  """Returns the HTML of a figure, without the script that all figures share."""
  if figure is None:
    return ""
  return plotly.io.to_html(
    figure,
    config={"displaylogo": False},
    include_plotlyjs=False,
    full_html=False,
    default_height=figure.layout.height,
    div_id=f"chart{number}",
  )
