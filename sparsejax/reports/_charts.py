"""The charts of a report, drawn from the records of runs."""

from collections.abc import Sequence

import numpy as np

from sparsejax.analysis import COLORS
from sparsejax.analysis.costs import forward_multiply_adds
from sparsejax.reports import _svg
from sparsejax.reports._run import Found
from sparsejax.reports._svg import Series
from sparsejax.training import cost_history


def run_colors(n: int) -> list[str]:
  """Returns one colour per run, the same in all charts of a page."""
  return [COLORS[i] for i in range(n)] if n <= len(COLORS) else ramp(n)


def ramp(n: int) -> list[str]:
  """Returns n colours from blue to orange, visible on light and dark backgrounds.

  Example:
    >>> ramp(2)
    ['rgb(0,114,178)', 'rgb(230,159,0)']
  """
  first, last = np.array([0, 114, 178]), np.array([230, 159, 0])
  parts = np.linspace(0, 1, n)[:, None]
  colors = np.round(first * (1 - parts) + last * parts).astype(int)
  return [f"rgb({r},{g},{b})" for r, g, b in colors]


def curves(runs: Sequence[Found]) -> list[str]:
  """Charts accuracy, loss, learning rate and speed over epochs, one line per run."""
  several = len(runs) > 1

  def lines(name: str, dashes: str = "") -> list[Series]:
    return [
      _series(run, name, color, dashes)
      for run, color in zip(runs, run_colors(len(runs)), strict=True)
    ]

  accuracy = lines("validation_accuracy") + lines("train_accuracy", "2 3")
  accuracy = [_percent(s) for s in accuracy]
  loss = lines("validation_loss") + lines("train_loss", "2 3")
  rates = [_positive(s, 1e-4) for s in lines("learning_rate")]
  note = "validation; dotted: training"
  return [
    _svg.chart(
      "Accuracy", accuracy, "{:.4g}%".format, limits=_upper(accuracy), legend=several,
      note=note,
    ),
    _svg.chart(
      "Loss", [_positive(s) for s in loss], log=True, legend=several, note=note
    ),
    _svg.chart("Learning rate", rates, legend=several, log=True),
    _svg.chart("Steps per second", lines("steps_per_second"), "{:,.0f}".format,
      legend=several),
  ]  # fmt: skip


def moves(runs: Sequence[Found]) -> list[str]:
  """Charts turnover, exploration, density and multiply-adds over epochs.

  There is one line per run.
  """
  turnover, explored, density, cost = [], [], [], []
  for run, color in zip(runs, run_colors(len(runs)), strict=True):
    size = sum(run.sizes.values())
    for name, dashes in (("grown", ""), ("dropped", "2 3")):
      x, y = _points(run, name)
      if len(x) and size:
        live = np.maximum(size * _at(run, "density", x), 1)
        turnover.append(Series(run.name, x, 100 * y / live, color, dashes))
    explored.append(_percent(_series(run, "explored", color)))
    density.append(_percent(_series(run, "density", color)))
    history = cost_history(run.records)
    if history and set(history[0]) <= set(run.uses) and run.masks:
      whole = forward_multiply_adds(run.uses, run.sizes)
      parts = [100 * forward_multiply_adds(run.uses, live) / whole for live in history]
      epochs = [r["epoch"] for r in run.records if "live" in r]
      cost.append(Series(run.name, np.array(epochs), np.array(parts), color))
  several, percent = len(runs) > 1, "{:.3g}%".format

  def chart(title: str, lines: Sequence[Series], note: str = "") -> str:
    return _svg.chart(title, lines, percent, legend=several, note=note)

  note = "grown since the record before, of the live; dotted: dropped"
  drawn = [chart("Turnover", turnover, note), chart("Density", density)]
  if any(len(s.x) for s in explored):
    drawn.insert(1, chart("Exploration rate", explored, "ever live"))
  drawn.append(chart("Multiply-adds to infer", cost, "of the dense network's"))
  return drawn


def budgets(runs: Sequence[Found]) -> list[str]:
  """Charts each layer's live weights over epochs, one chart per run, on equal axes."""
  every = [_layers(run) for run in runs]
  values = [s.y[s.y > 0] for lines in every for s in lines]
  values = [v for v in values if v.size]
  limits = None
  if values:
    ticks = _svg.log_ticks(min(v.min() for v in values), max(v.max() for v in values))
    limits = ticks[0], ticks[-1]
  return [
    _svg.chart(
      "Live weights by layer", [_positive(s) for s in lines], "{:,.0f}".format,
      log=True, limits=limits, legend=len(lines) <= 10,
      note=(run.name if len(runs) > 1 else "")
      + ("" if len(lines) <= 10 else " first layer blue, last orange"),
    )
    for run, lines in zip(runs, every, strict=True)
  ]  # fmt: skip


def _layers(run: Found) -> list[Series]:
  records = [r for r in run.records if "live" in r]
  if not records:
    return []
  x = np.array([r["epoch"] for r in records], float)
  layers = list(records[0]["live"])
  colors = list(COLORS) if len(layers) <= len(COLORS) else ramp(len(layers))
  series = []
  for name, color in zip(layers, colors, strict=False):
    y = np.array([np.atleast_1d(r["live"][name]) for r in records], float)
    last, size = y[-1].mean(), run.sizes.get(name)
    share = f", {100 * last / size:.3g}%" if size else ""
    label = f"{name.removesuffix('/kernel')} ({last:,.0f}{share})"
    series.append(Series(label, x, y, color))
  return series


def _points(run: Found, name: str) -> tuple[np.ndarray, np.ndarray]:
  found = [r for r in run.records if r.get(name) is not None]
  x = np.array([r["epoch"] for r in found], float)
  return x, np.array([np.atleast_1d(r[name]) for r in found], float)


def _series(run: Found, name: str, color: str, dashes: str = "") -> Series:
  return Series(run.name, *_points(run, name), color, dashes)


def _at(run: Found, name: str, x: np.ndarray) -> np.ndarray:
  at, values = _points(run, name)
  return values[np.minimum(np.searchsorted(at, x), len(at) - 1)]


def _percent(series: Series) -> Series:
  return series._replace(y=100 * np.asarray(series.y))


def _positive(series: Series, part: float = 0.0) -> Series:
  """Replaces values by NaN that are not above `part` times the largest value.

  With `part` zero, these are the values that a logarithmic axis cannot show.
  """
  y = np.asarray(series.y, float)
  low = part * np.nanmax(y, initial=0.0)
  return series._replace(y=np.where(y > low, y, np.nan))


def _upper(series: Sequence[Series]) -> tuple[float, float] | None:
  """Returns axis limits that leave out the low accuracies at the start of training."""
  means = [s.y.mean(1) for s in series if len(s.x)]
  if not means:
    return None
  low = min(float(np.nanquantile(m, 0.1)) for m in means)
  bottom = max(0.0, low - 0.25 * (100 - low))
  return bottom, 100.0 + 0.01 * (100 - bottom)
