"""Line charts as SVG, with colours set by the page's style."""

import html
import json
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 340, 220
_RIGHT, _TOP, _BOTTOM = 12, 10, 34
_MOST_POINTS = 240


class Series(NamedTuple):
  """One line of a chart.

  Attributes:
    label: the name in the legend.
    x: float (n,), ascending.
    y: float (n,) or (n, seeds); the line is the mean over seeds, the band the range.
    color: a CSS colour.
    dashes: an SVG dash pattern such as `5 3`; empty for a solid line.
  """

  label: str
  x: np.ndarray
  y: np.ndarray
  color: str
  dashes: str = ""


def chart(
  title: str,
  series: Sequence[Series],
  show: Callable[[float], str] = "{:g}".format,
  *,
  log: bool = False,
  limits: tuple[float, float] | None = None,
  legend: bool = True,
  note: str = "",
  x_label: str = "epoch",
) -> str:
  """Draws a line chart.

  Args:
    title: the title above the chart.
    series: the lines. If none has a finite value, a note replaces the chart.
    show: formats a value of the y axis.
    log: whether the y axis is logarithmic; values must then be above 0.
    limits: limits of the y axis; by default the range of the values.
    legend: whether to show a legend; dashed lines are not listed in it.
    note: text after the title.
    x_label: label of the x axis.

  Returns:
    An HTML `<figure>` with one `<svg>`.
  """
  lines = [_thinned(s) for s in series]
  lines = [s for s in lines if len(s.x)]
  small = f" <small>{html.escape(note)}</small>" if note else ""
  head = f"<figcaption>{html.escape(title)}{small}</figcaption>"
  if not lines:
    return f'<figure class="chart">{head}<p class="none">nothing recorded</p></figure>'
  # Choose the ranges of both axes, and the ticks of the y axis.
  every = np.concatenate([s.y.ravel() for s in lines])
  low, high = limits or (float(every.min()), float(every.max()))
  if high - low <= 1e-3 * abs(high) and not log:
    low, high = min(0.0, 1.2 * high), max(0.0, 1.2 * high)  # don't magnify noise
  scale = math.log10 if log else float
  ticks = log_ticks(low, high) if log else nice_ticks(low, high)
  if limits is None:
    low, high = min(low, ticks[0]), max(high, ticks[-1])
  start = 14 + 7 * max(len(show(tick)) for tick in ticks)
  x_low = min(float(s.x[0]) for s in lines)
  x_high = max(float(s.x[-1]) for s in lines)
  x_span = (x_high - x_low) or 1.0
  y_low, y_span = scale(low), (scale(high) - scale(low)) or 1.0

  def at_x(x):
    return start + (WIDTH - start - _RIGHT) * (float(x) - x_low) / x_span

  def at_y(y):
    part = min(max((scale(float(y)) - y_low) / y_span, 0.0), 1.0)
    return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * part

  # Draw the grid, the tick labels and the axis label.
  parts = []
  for tick in ticks:
    if low <= tick <= high:
      y = at_y(tick)
      parts.append(
        f'<path class="grid" d="M{start} {y:.1f}H{WIDTH - _RIGHT}"/>'
        f'<text x="{start - 6}" y="{y + 4:.1f}" text-anchor="end">{show(tick)}</text>'
      )
  for tick in nice_ticks(x_low, x_high, 5):
    if x_low <= tick <= x_high:
      parts.append(
        f'<text x="{at_x(tick):.1f}" y="{HEIGHT - 18}" text-anchor="middle">'
        f"{tick:g}</text>"
      )
  parts.append(
    f'<text x="{(WIDTH + start - _RIGHT) / 2:.0f}" y="{HEIGHT - 3}"'
    f' text-anchor="middle">{html.escape(x_label)}</text>'
  )
  # Draw each series: the band of its seeds, then its mean, as a dot if it is one point.
  for s in lines:
    xs = [at_x(x) for x in s.x]
    if s.y.shape[1] > 1:
      top = [at_y(y) for y in s.y.max(1)]
      bottom = [at_y(y) for y in s.y.min(1)]
      outline = [*zip(xs, top, strict=True), *reversed([*zip(xs, bottom, strict=True)])]
      parts.append(f'<path class="band" style="fill:{s.color}" d="{_path(outline)}Z"/>')
    points = list(zip(xs, (at_y(y) for y in s.y.mean(1)), strict=True))
    dashes = f' stroke-dasharray="{s.dashes}"' if s.dashes else ""
    if len(points) == 1:
      parts.append(
        f'<circle style="fill:{s.color}" cx="{points[0][0]:.1f}"'
        f' cy="{points[0][1]:.1f}" r="3"/>'
      )
    parts.append(
      f'<path class="line" style="stroke:{s.color}"{dashes} d="{_path(points)}"/>'
    )
  # Embed the values as JSON, for the script that shows them under the pointer.
  frame = [start, WIDTH - _RIGHT, x_low, x_low + x_span]
  readings = [
    {
      "l": s.label,
      "c": s.color,
      "x": [float(f"{x:.6g}") for x in s.x],
      "y": [show(float(f"{y:.4g}")) for y in s.y.mean(1)],
    }
    for s in lines
  ]
  # Escape "</", which would end the script element.
  values = json.dumps({"frame": frame, "series": readings}).replace("</", "<\\/")
  names = ""
  if legend:
    items = (
      f'<li><i style="background:{s.color}"></i>{html.escape(s.label)}</li>'
      for s in lines
      if not s.dashes
    )
    names = f'<ul class="legend">{"".join(items)}</ul>'
  label = html.escape(title, quote=True)
  return (
    f'<figure class="chart">{head}{names}'
    f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    f'{"".join(parts)}<path class="cross" d=""/></svg>'
    f'<script type="application/json">{values}</script></figure>'
  )


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
  """Returns round numbers that cover a range.

  Args:
    low: the lower end of the range.
    high: the upper end of the range, at least `low`.
    most: the approximate maximum number of ticks.

  Returns:
    Ascending multiples of 1, 2 or 5 times a power of ten, the first at most `low` and
    the last at least `high`.

  Example:
    >>> nice_ticks(0.2, 9.1)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
  """
  span = (high - low) or abs(high) or 1.0
  rough = span / most
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  last = max(last, first + 1)
  return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
  """Returns round numbers for a logarithmic axis that cover a range.

  Args:
    low: the lower end of the range, above 0.
    high: the upper end of the range, at least `low`.

  Returns:
    Powers of ten that cover the range, and also their multiples by 2 and 5 if the range
    spans at most two powers of ten.

  Example:
    >>> log_ticks(15, 900)
    [10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]
  """
  first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
  factors = (1, 2, 5) if last - first <= 2 else (1,)
  every = [f * 10.0**p for p in range(first, last + 1) for f in factors]
  below = [t for t in every if t <= low * 1.0001][-1:]
  above = [t for t in every if t >= high * 0.9999][:1]
  return below + [t for t in every if low * 1.0001 < t < high * 0.9999] + above


def _path(points) -> str:
  return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _thinned(s: Series) -> Series:
  """Removes points that are not finite, and thins the others to a maximum number."""
  x = np.asarray(s.x, float)
  y = np.asarray(s.y, float).reshape(len(x), -1 if len(x) else 1)
  finite = np.isfinite(y).all(1)
  x, y = x[finite], y[finite]
  if len(x) > _MOST_POINTS:
    take = np.unique(np.linspace(0, len(x) - 1, _MOST_POINTS).round().astype(int))
    x, y = x[take], y[take]
  return s._replace(x=x, y=y)
