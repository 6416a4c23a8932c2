"""Draws `report.png`: error and live weights per layer over the epochs."""

import pathlib
from typing import Any

import numpy as np
from matplotlib import figure, ticker

from sparsejax.analysis import (
  FAINT,
  INK,
  line_colors,
  method_name,
  run_title,
  style_axes,
)
from sparsejax.training import _metrics, _result, _run, _workdir

FILE = "report.png"
# The least error drawn, in percent: a logarithmic axis has no zero.
_LEAST = 0.01
# The lower edge of the axis of live weights, below one weight.
_EDGE = 0.8


def write(path: pathlib.Path, run: _run.Run, result: _result.Result) -> None:
  """Draws a finished run into `<workdir>/report.png`.

  Args:
    path: the run's directory.
    run: the `Run` returned by `prepare`.
    result: the run's result.
  """
  masks = _run.named(_result.first_seed(result)[1])
  c = run.config
  method = method_name(c.method)
  drawn = draw(
    _metrics.read(path),
    sizes={name: int(mask.size) for name, mask in masks.items()},
    title=run_title({"model": c.model, "dataset": c.dataset}),
    subtitle=f"{method}, density {result.density:.3g}, {result.total_steps:,} steps",
    score=_result.percent(result.test_accuracy),
  )
  with _workdir.replacing(path / FILE) as file:
    drawn.savefig(file, format="png", dpi=160)


def draw(
  records: list[dict[str, Any]],
  sizes: dict[str, int],
  title: str = "",
  subtitle: str = "",
  score: str = "",
) -> figure.Figure:
  """Draws the records of `metrics.jsonl`.

  Args:
    records: the records from `read_metrics`.
    sizes: the number of weights of each sparsified layer, by its path.
    title: the first line.
    subtitle: the second line.
    score: the test accuracy, formatted.

  Returns:
    A figure with two panels: the error and each layer's live weights, over epochs.
  """
  fig = figure.Figure(figsize=(11, 4.8), facecolor="white")
  left, right = fig.subplots(1, 2, width_ratios=(1, 1.15))
  fig.subplots_adjust(left=0.06, right=0.845, top=0.745, bottom=0.12, wspace=0.24)
  fig.text(0.022, 0.915, title, size=16, weight="bold", color=INK)
  fig.text(0.022, 0.855, subtitle, size=10.5, color=FAINT)
  if score:
    fig.text(0.978, 0.915, score, size=16, weight="bold", color=INK, ha="right")
    fig.text(0.978, 0.855, "test accuracy", size=10.5, color=FAINT, ha="right")
  _error(left, records)
  _live(right, records, sizes)
  for axes in (left, right):
    axes.set_xlabel("epoch")
    axes.margins(x=0)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
    style_axes(axes)
  return fig


def _error(axes, records: list[dict[str, Any]]) -> None:
  """Draws training and validation error over epochs, on a logarithmic axis.

  There 98 and 99 % are as far apart as 80 and 90 %, so the start of a run, near chance,
  needs little room.
  """
  axes.set_title(f"Error, % (below {_LEAST} at {_LEAST})")
  for label, name, color in (
    ("training", "train_accuracy", "#aab1c0"),
    ("validation", "validation_accuracy", INK),
  ):
    epochs, values = _series(records, name)
    if len(epochs):
      _line(axes, epochs, np.maximum(100 * (1 - values), _LEAST), color, label)
  if not axes.lines:
    return
  axes.set_yscale("log")
  axes.legend(loc="upper right", fontsize=9.5)
  axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=12))
  axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f"{v:g}"))
  axes.yaxis.set_minor_locator(ticker.NullLocator())


def _live(axes, records: list[dict[str, Any]], sizes: dict[str, int]) -> None:
  """Draws the live weights of each layer over epochs, on a logarithmic axis."""
  axes.set_title("Live weights by layer")
  with_live = [r for r in records if "live" in r]
  if not with_live:
    return
  epochs = np.array([r["epoch"] for r in with_live])
  ends = {}
  for name, color in zip(sizes, line_colors(len(sizes)), strict=True):
    counts = np.array([np.atleast_1d(r["live"][name]) for r in with_live], float)
    # A layer without live weights is drawn on the lower edge.
    _line(axes, epochs, np.maximum(counts, _EDGE), color, name)
    ends[name] = counts[-1].mean(), color
  axes.set_yscale("log")
  bottom, top = axes.get_ylim()
  axes.set_ylim(max(bottom / 1.15, _EDGE), top * 1.15)
  axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=12))
  axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f"{v:,.0f}"))
  axes.yaxis.set_minor_locator(ticker.NullLocator())
  _label(axes, ends, sizes)


def _label(axes, ends: dict[str, tuple[float, Any]], sizes: dict[str, int]) -> None:
  """Labels each line at its right end, moving labels apart where they overlap."""
  if len(ends) > 24:
    note = f"{len(ends)} layers,\nfirst (dark)\nto last (light)"
    axes.text(1.02, 0.5, note, transform=axes.transAxes, color=FAINT, size=8.5)
    return
  long = len(ends) <= 8
  low, high = np.log10(axes.get_ylim())
  wanted = {n: (np.log10(max(v, 1)) - low) / (high - low) for n, (v, _) in ends.items()}
  places = _spread(wanted, gap=0.118 if long else 0.043)
  for name, (value, color) in ends.items():
    share = f"{100 * value / sizes[name]:.3g}%"
    short = name.removesuffix("/kernel")
    text = f"{short}  {share}"
    if long:
      text = f"{short}\n{value:,.0f} of {sizes[name]:,} ({share})"
    axes.text(
      1.02,
      places[name],
      text,
      transform=axes.transAxes,
      color=color,
      size=8.5 if long else 7.5,
      va="center",
      linespacing=1.25,
    )


def _line(axes, x: np.ndarray, values: np.ndarray, color: Any, label: str) -> None:
  """Draws the mean over seeds as a line, and their range as a band."""
  axes.plot(x, values.mean(axis=1), color=color, linewidth=2, label=label)
  if values.shape[1] > 1:
    low, high = values.min(axis=1), values.max(axis=1)
    axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def _series(records: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns epochs (n,) and values (n, seeds), averaged within each epoch."""
  by_epoch: dict[float, list[np.ndarray]] = {}
  for r in records:
    values = np.atleast_1d(np.array(r.get(name), float))  # null reads as NaN
    if np.isfinite(values).all():
      by_epoch.setdefault(float(np.ceil(r["epoch"])), []).append(values)
  epochs = sorted(by_epoch)
  means = [np.mean(by_epoch[e], axis=0) for e in epochs]
  return np.array(epochs), np.array(means)


def _spread(wanted: dict[str, float], gap: float) -> dict[str, float]:
  """Moves positions on a line apart until neighbours are at least `gap` apart."""
  order = sorted(wanted, key=lambda name: wanted[name])
  places = np.array([wanted[name] for name in order])
  for _ in range(500):
    overlap = np.maximum(gap - np.diff(places), 0)
    if not (overlap > 1e-4).any():
      break
    places[:-1] -= overlap / 2
    places[1:] += overlap / 2
  return dict(zip(order, places.tolist(), strict=True))
