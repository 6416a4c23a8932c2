"""The charts of a report, as figures of plotly."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from matplotlib import colors

from sparsejax.analysis import COLORS, line_colors
from sparsejax.analysis.costs import forward_multiply_adds
from sparsejax.reports._run import Found

Group = Sequence[Found]  # runs that differ in their seeds alone
# Returns a number of a record, or one per seed, or None; the run has the layers' sizes.
Value = Callable[[Found, dict[str, Any]], Any]

_MOST_POINTS = 400  # per line
_MOST_LAYERS = 8  # with a chart of their own
_DOTS = "2px,3px"
_EMPTY: Mapping[str, Any] = {}
_PERCENT = {"ticksuffix": "%", "rangemode": "tozero"}
_LOG = {"type": "log", "tickformat": ",~g"}


class Chart(NamedTuple):
  """A figure with its caption.

  Attributes:
    title: what is shown.
    note: how to read it, or an empty string.
    figure: the figure; None if nothing was recorded.
  """

  title: str
  note: str
  figure: go.Figure | None


class Series(NamedTuple):
  """A quantity over epochs: its mean and range over the seeds, float (points,)."""

  x: np.ndarray
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray


def curves(groups: Sequence[Group]) -> list[Chart]:
  """Charts error, loss, learning rate and time per step, one line per group."""

  def both(name: str, change: Callable[[Any], Any] = lambda v: v) -> list[Any]:
    validation = _lines(groups, _field(f"validation_{name}", change), "validation")
    return validation + _lines(
      groups, _field(f"train_{name}", change), "training", _DOTS
    )

  def error(accuracy: Any) -> Any:
    # On a logarithmic axis, 98 and 99 % are as far apart as 80 and 90 %.
    return np.maximum(100 * (1 - accuracy), 0.01)

  def step_time(run: Found, record: dict[str, Any]) -> Any:
    found = record.get("steps_per_second")
    first = next((r for r in run.records if "steps_per_second" in r), record)
    # The first record of a run includes the time to compile.
    if not found or (record["step"] == first["step"] and run.records[-1] != first):
      return None
    return 1000 / np.array(found)

  return [
    _chart("Error, %", both("accuracy", error), _LOG, "below 0.01 at 0.01"),
    _chart("Loss", both("loss"), _LOG),
    _chart("Learning rate", _lines(groups, _field("learning_rate"))),
    _chart("Time per step, ms", _lines(groups, step_time), _LOG),
  ]


def masks(groups: Sequence[Group]) -> list[Chart]:
  """Charts density, turnover, exploration and multiply-adds, one line per group."""

  def moved(name: str) -> Value:
    def value(run: Found, record: dict[str, Any]) -> Any:
      if record.get(name) is None or not run.sizes:
        return None
      live = np.array(record["density"]) * sum(run.sizes.values())
      return 100 * np.array(record[name]) / np.maximum(live, 1)

    return value

  def multiply_adds(run: Found, record: dict[str, Any]) -> Any:
    live = record.get("live")
    if not live or not set(live) == set(run.sizes) <= set(run.uses):
      return None
    part = forward_multiply_adds(run.uses, {k: np.mean(v) for k, v in live.items()})
    return 100 * part / forward_multiply_adds(run.uses, run.sizes)

  percent = lambda v: 100 * v
  turnover = _lines(groups, moved("grown"), "grown")
  turnover += _lines(groups, moved("dropped"), "dropped", _DOTS)
  charts = [
    _chart("Density", _lines(groups, _field("density", percent)), _PERCENT),
    _chart(
      "Turnover", turnover, _PERCENT,
      "of live weights, per record; dotted: dropped",
    ),
    _chart(
      "Multiply-adds to infer", _lines(groups, multiply_adds), _PERCENT,
      "of the dense network's",
    ),
  ]  # fmt: skip
  explored = _lines(groups, _field("explored", percent))
  if explored:
    charts.append(_chart("Exploration rate", explored, _PERCENT, "ever live"))
  return charts


def layers(groups: Sequence[Group]) -> list[Chart]:
  """Charts live weights by layer: over epochs, and of several groups at the end.

  A single group has one chart with one line per layer. Several have one chart per
  layer, in which lines and colors stand for groups, as in all other charts.
  """

  def live(name: str) -> Value:
    return lambda run, record: record.get("live", {}).get(name)

  names = list(dict.fromkeys(name for group in groups for name in group[0].sizes))
  if len(groups) == 1:
    traces = []
    for name, color in zip(names, line_colors(len(names)), strict=True):
      for trace in _lines(groups, live(name), color=colors.to_hex(color)):
        trace.update(name=_short(name), showlegend=trace.hoverinfo != "skip")
        traces.append(trace)
    chart = _chart("Live weights by layer", traces, _LOG)
    if chart.figure is not None:
      chart.figure.update_layout(showlegend=len(names) <= len(COLORS), height=320)
    return [chart]
  ends = [
    go.Scatter(
      x=[_short(name) for name in run.sizes],
      y=[100 * run.live[name] / size for name, size in run.sizes.items()],
      name=run.name, meta=[f"run{i}"], mode="lines+markers",
      line={"color": COLORS[i], "width": 1.5},
      hovertemplate="%{fullData.name}, %{x}: %{y:.4~g}%<extra></extra>",
    )
    for i, (run, *_) in enumerate(groups)
  ]  # fmt: skip
  chart = _chart("Density by layer, %", ends, _LOG, "at the end")
  if chart.figure is not None:
    chart.figure.update_xaxes(title=None, dtick=None, type="category")
  if len(names) > _MOST_LAYERS:
    return [chart]
  return [chart] + [
    _chart(f"Live weights of {_short(name)}", _lines(groups, live(name)), _LOG)
    for name in names
  ]


def series(group: Group, value: Value) -> Series:
  """Collects a quantity from the records of all runs of a group.

  Args:
    group: the runs.
    value: called with the group's first run, whose masks are known, and a record.

  Returns:
    Mean and range over the seeds that have a record of an epoch, at no more than 400
    epochs. Values that are not finite are left out.
  """
  found: dict[float, list[float]] = {}
  for run in group:
    for record in run.records:
      values = value(group[0], record)
      values = np.atleast_1d(np.array([] if values is None else values, float))
      values = values[np.isfinite(values)]
      if len(values):
        found.setdefault(record["epoch"], []).extend(values)
  x = np.array(sorted(found), float)
  if len(x) > _MOST_POINTS:
    x = x[np.linspace(0, len(x) - 1, _MOST_POINTS).round().astype(int)]
  over = lambda f: np.array([f(found[epoch]) for epoch in x], float)
  return Series(x, over(np.mean), over(np.min), over(np.max))


def _field(name: str, change: Callable[[Any], Any] = lambda v: v) -> Value:
  """Returns a function that reads a field of a record and changes its value."""

  def value(run: Found, record: dict[str, Any]) -> Any:
    found = record.get(name)
    return None if found is None else change(np.array(found, float))

  return value


def _lines(
  groups: Sequence[Group],
  value: Value,
  kind: str = "",
  dash: str = "solid",
  color: str = "",
) -> list[Any]:
  """Returns a line per group, the mean of its seeds, and a band, their range.

  The script of the page hides the lines that have a given text in their `meta`.
  """
  traces = []
  for i, group in enumerate(groups):
    s = series(group, value)
    if not len(s.x):
      continue
    name = ", ".join(filter(None, (group[0].name, kind)))
    shared = {"name": name, "meta": [f"run{i}", kind]}
    shade = color or COLORS[i]
    if (s.low < s.high).any():
      x, y = np.append(s.x, s.x[::-1]), np.append(s.high, s.low[::-1])
      traces.append(
        go.Scatter(
          x=x, y=y, fill="toself", fillcolor=shade, opacity=0.2, line={"width": 0},
          mode="lines", hoverinfo="skip", **shared,
        )
      )  # fmt: skip
    traces.append(
      go.Scatter(
        x=s.x, y=s.mean, mode="lines" if len(s.x) > 1 else "markers",
        line={"color": shade, "width": 2, "dash": dash}, marker={"color": shade},
        hovertemplate="%{fullData.name}: %{y:,.5~g}<extra></extra>", **shared,
      )
    )  # fmt: skip
  return traces


def _chart(
  title: str, traces: Sequence[Any], axis: Mapping[str, Any] = _EMPTY, note: str = ""
) -> Chart:
  """Puts traces into a figure whose horizontal axis is the epoch."""
  if not traces:
    return Chart(title, note, None)
  last = max((max(t.x) for t in traces if isinstance(t.x[0], float)), default=0)
  few = sum(trace.hoverinfo != "skip" for trace in traces) <= 6
  layout = {
    # The style sheet colors the text and the grid, for light and dark pages.
    "template": "none",
    "height": 260,
    "margin": {"l": 52, "r": 8, "t": 8, "b": 40},
    "showlegend": False,
    "legend": {"orientation": "h", "yanchor": "top", "y": -0.16},
    "hovermode": "x unified" if few else "closest",
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "xaxis": {"title": {"text": "epoch", "standoff": 4}, "zeroline": False, "nticks": 6}
    | {"rangemode": "tozero"}
    | ({"dtick": 1} if 1 <= last <= 6 else {}),
    "yaxis": {"zeroline": False, "nticks": 6, **_log_ticks(axis, traces), **axis},
  }
  return Chart(title, note, go.Figure(traces, layout))


def _log_ticks(axis: Mapping[str, Any], traces: Sequence[Any]) -> dict[str, Any]:
  """Returns the settings for the ticks of a logarithmic axis, none if it is short.

  Ticks are at 1, 2 and 5, or on a long axis at powers of ten.
  """
  if axis.get("type") != "log":
    return {}
  y = np.concatenate([trace.y for trace in traces])
  y = y[y > 0]
  decades = np.log10(y.max() / y.min()) if len(y) else 0.0
  if decades < 0.7:
    return {}
  return {"dtick": "D2" if decades < 2.5 else 1}


def _short(name: str) -> str:
  return name.removesuffix("/kernel")
