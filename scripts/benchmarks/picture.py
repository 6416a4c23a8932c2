"""Plots the benchmarks: selection by size, and both kinds of step of every method."""

import pathlib

import numpy as np
from matplotlib import ticker

from sparsejax.analysis import COLORS, FAINT, method_name, new_figure, style_axes

TREES = {"resnet50": "ResNet-50", "vit_b": "ViT-B"}
OTHERS = {
  "speedup_over_jnp_sort": "jnp.sort",
  "speedup_over_lax_top_k": "lax.top_k",
  "times_numpy_partition": "numpy.partition",
}


def draw(rows: list[dict], out: pathlib.Path) -> None:
  """Plots the rows that are finished.

  Args:
    rows: rows of results/benchmarks.json.
    out: path of the plot.
  """
  found = {(row["case"], row["metric"]): row["mean"] for row in rows}
  fig, panels = new_figure(1, 3, (13, 4.6), width_ratios=(1, 1.1, 1.1))
  left, middle, right = panels
  _selection(left, found)
  _methods(middle, found, "off_step", "A step without a mask update")
  _methods(right, found, "mask_update", "A step with a mask update")
  for axes, grid in zip(panels, "yxx", strict=True):
    style_axes(axes, grid)
  out.parent.mkdir(parents=True, exist_ok=True)
  fig.savefig(out, dpi=120)


def _selection(axes, found) -> None:
  for (metric, name), color in zip(OTHERS.items(), COLORS, strict=False):
    points = sorted(
      (float(case.split("=")[1]), value)
      for (case, m), value in found.items()
      if m == metric and case.startswith("selection/")
    )
    # Plot every ratio as the other's time over ours.
    values = [1 / v if metric.startswith("times") else v for _, v in points]
    if points:
      axes.plot([n for n, _ in points], values, "o-", ms=4, color=color, label=name)
      axes.set(xscale="log", yscale="log")
  axes.axhline(1, color=FAINT, lw=1, ls=":")
  axes.legend(fontsize=9)
  axes.set_xlabel("scores")
  axes.set_title("Largest tenth: their time over ours")


def _methods(axes, found, kind: str, text: str) -> None:
  names = {
    case.rpartition("/")[2]
    for case, metric in found
    if case.startswith(f"{kind}/") and metric == "times_plain_step"
  }
  cost = lambda name: found.get((f"{kind}/resnet50/{name}", "times_plain_step"), np.inf)
  names = sorted(names, key=lambda name: (cost(name), name))
  for (tree, label), color in zip(TREES.items(), COLORS, strict=False):
    for metric, marker, suffix in (
      ("times_plain_step", "o", ""),
      ("times_plain_step_before", "x", ", before"),
    ):
      points = [
        (found.get((f"{kind}/{tree}/{n}", metric)), y) for y, n in enumerate(names)
      ]
      points = [(x, y) for x, y in points if x is not None]
      if points:
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, marker, ms=5, color=color, label=label + suffix)
  axes.set_yticks(range(len(names)), [method_name(n) for n in names])
  if kind == "mask_update" and names:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
  axes.set_xlim(left=min(1, axes.get_xlim()[0]))
  if names:
    axes.legend(fontsize=9, loc="best")
  axes.set_xlabel("times a plain SGD-momentum step")
  axes.set_title(text)
