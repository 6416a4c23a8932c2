"""Plots of lottery tickets, in the style of the papers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsejax.analysis._plot_style import (
  COLORS,
  FAINT,
  INK,
  new_figure,
  style_axes,
)

_ORDER = ("ticket", "reinit", "random", "one_shot")
_NAMES = {
  "ticket": "winning ticket",
  "reinit": "random reinitialization",
  "reinit_signs": "reinitialization, same signs",
  "random": "shuffled masks",
  "random_reinit": "shuffled masks, reinitialized",
  "one_shot": "one-shot",
}


def plot_tickets(
  curves: Mapping[str, Mapping[float, Sequence[float]]],
  ylabel: str,
  dense: Sequence[float] = (),
  title: str = "",
) -> Any:
  """Plots a quantity against weights remaining, as mean and range over seeds.

  Args:
    curves: by what was trained ("ticket", "reinit", "random", "one_shot" ...), then by
      density in (0, 1): one value per seed.
    ylabel: label of the values.
    dense: values of the dense network, drawn as a horizontal line.
    title: title of the plot.

  Returns:
    A matplotlib figure; weights remaining decrease from left to right. Needs the
    `train` extra.

  Raises:
    ValueError: there is nothing to draw.

  References:
    Frankle and Carbin 2019, figures 3 and 4.

  Example:
    >>> curves = {"ticket": {0.5: [98.0, 98.2], 0.2: [98.1, 98.4]}}
    >>> figure = plot_tickets(curves, "test accuracy, %", dense=[97.9, 98.0])
  """
  if not curves or len(curves) > len(COLORS):
    raise ValueError(
      f"curves must contain 1 to {len(COLORS)} names, got {len(curves)}."
    )
  figure, axes = new_figure()
  names = sorted(curves, key=lambda n: _ORDER.index(n) if n in _ORDER else len(_ORDER))
  ticks: set[float] = set()
  for color, name in zip(COLORS, names, strict=False):
    densities = sorted(curves[name], reverse=True)
    values = [np.asarray(curves[name][d], float) for d in densities]
    x = 100 * np.asarray(densities)
    low, high = [v.min() for v in values], [v.max() for v in values]
    means = [v.mean() for v in values]
    label = _NAMES.get(name, name.replace("_", " "))
    axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(x, means, color=color, linewidth=2, marker="o", ms=4, label=label)
    ticks.update(np.round(x, 1).tolist())
  if len(dense):
    axes.axhline(
      float(np.mean(dense)), color=INK, lw=1.2, ls=(0, (5, 3)), label="dense"
    )
    axes.axhspan(min(dense), max(dense), color=INK, alpha=0.08, lw=0)
  axes.set_xscale("log")
  axes.invert_xaxis()
  axes.set_xticks(sorted(ticks), [f"{t:g}" for t in sorted(ticks)], rotation=60)
  axes.set_xticks([], minor=True)
  axes.set(xlabel="weights remaining, %", ylabel=ylabel, title=title)
  axes.legend(fontsize=9)
  style_axes(axes)
  return figure


def plot_instability(values: Mapping[int, Sequence[float]], stable: float = 2.0) -> Any:
  """Plots instability against the step from which two copies of a network diverge.

  Args:
    values: by step, one value per seed, in percentage points of error.
    stable: threshold below which a network counts as stable, drawn as a line.

  Returns:
    A matplotlib figure. Needs the `train` extra.

  Raises:
    ValueError: there is nothing to draw.

  References:
    Frankle et al. 2020, "Linear mode connectivity and the lottery ticket hypothesis",
    figure 3.

  Example:
    >>> figure = plot_instability({0: [30.0, 34.0], 500: [1.0, 1.5]})
  """
  if not values:
    raise ValueError("values must contain at least one step, got none.")
  figure, axes = new_figure()
  steps = sorted(values)
  several = [np.asarray(values[s], float) for s in steps]
  low, high = [v.min() for v in several], [v.max() for v in several]
  axes.fill_between(steps, low, high, color=COLORS[0], alpha=0.15, linewidth=0)
  means = [v.mean() for v in several]
  axes.plot(steps, means, color=COLORS[0], linewidth=2, marker="o", ms=4)
  axes.axhline(stable, color=FAINT, lw=1, ls=(0, (5, 3)), label=f"stable: {stable:g} %")
  axes.set_xscale("symlog", linthresh=max(1, min([s for s in steps if s] or [1])))
  axes.set_xticks(steps, [f"{s:,}" for s in steps])
  axes.set_xticks([], minor=True)
  axes.set_ylim(bottom=min(0.0, *low))
  axes.set(xlabel="step from which the data differ")
  axes.set(ylabel="instability, points of error")
  axes.legend()
  style_axes(axes)
  return figure


def plot_connectivity(counts: np.ndarray, title: str = "") -> Any:
  """Plots the counts of `input_connectivity` as an image.

  Args:
    counts: (height, width) or (height, width, channels); channels are summed.
    title: title of the plot.

  Returns:
    A matplotlib figure. Needs the `train` extra.

  Example:
    >>> figure = plot_connectivity(np.arange(16).reshape(4, 4))
  """
  counts = np.asarray(counts)
  figure, axes = new_figure()
  image = axes.imshow(counts if counts.ndim == 2 else counts.sum(-1), cmap="viridis")
  axes.set(xticks=[], yticks=[], title=title)
  style_axes(axes, grid="")
  bar = figure.colorbar(image, ax=axes, label="live weights")
  bar.outline.set_visible(False)
  return figure
