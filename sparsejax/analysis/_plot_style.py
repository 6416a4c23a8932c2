"""The style of all plots: colors, display names, and how axes look."""

from collections.abc import Mapping
from typing import Any

INK, FAINT, GRID = "#1f2430", "#7a8191", "#e6e8ee"
# Okabe and Ito's palette, which is safe for color-blind readers, without its black and
# yellow; then further colors that are visible on light and dark backgrounds.
COLORS = (
  "#0072b2",
  "#d55e00",
  "#009e73",
  "#cc79a7",
  "#e69f00",
  "#56b4e9",
  "#7f5fc7",
  "#8c6d46",
  "#a3b31b",
  "#c2374f",
  "#7a8191",
  "#2bb5b0",
)
DISPLAY_NAMES = {
  "ac_dc": "AC/DC",
  "chts": "CHTs",
  "cifar10": "CIFAR-10",
  "conv4_mnist": "Conv-4",
  "deep_r": "Deep-R",
  "dsr": "DSR",
  "fashion_mnist": "Fashion-MNIST",
  "granet": "GraNet",
  "grasp": "GraSP",
  "lenet300": "LeNet-300-100",
  "lenet5": "LeNet-5",
  "mest": "MEST",
  "mlp": "MLP",
  "mnist": "MNIST",
  "ntk_sap": "NTK-SAP",
  "phew": "PHEW",
  "prospr": "ProsPr",
  "rigl": "RigL",
  "snfs": "SNFS",
  "snip": "SNIP",
  "sparse_evolution": "SET",
  "s_ste": "S-STE",
  "continuous_sparsification": "Cont. sparsification",
  "spartan": "Spartan",
  "powerpropagation": "Powerprop",
  "sr_ste": "SR-STE",
  "synflow": "SynFlow",
  "top_kast": "Top-KAST",
}


def method_name(method: str) -> str:
  """Returns a method's name as papers write it."""
  return DISPLAY_NAMES.get(method, method.replace("_", " ").capitalize())


def run_title(config: Mapping[str, Any]) -> str:
  """Returns a run's title, the model and the data set.

  Args:
    config: a config or dict with `model` and `dataset`.

  Returns:
    A text such as `LeNet-5 on MNIST`.
  """
  model, dataset = config["model"], config["dataset"]
  return f"{DISPLAY_NAMES.get(model, model)} on {DISPLAY_NAMES.get(dataset, dataset)}"


def line_colors(n: int) -> list[Any]:
  """Returns n colors: distinct ones if there are enough, else from dark to light.

  Args:
    n: the number of lines, such as the layers of a network in their order.

  Returns:
    Colors that matplotlib accepts.

  Example:
    >>> line_colors(2)
    ['#0072b2', '#d55e00']
  """
  if n <= len(COLORS):
    return list(COLORS[:n])
  import matplotlib  # not among the core's dependencies

  return list(matplotlib.colormaps["viridis"]([0.9 * i / (n - 1) for i in range(n)]))


def new_figure(
  rows: int = 1,
  columns: int = 1,
  size: tuple[float, float] = (6.4, 4.4),
  **subplots: Any,
) -> tuple[Any, Any]:
  """Creates a white figure with panels.

  Args:
    rows: the number of rows of panels.
    columns: the number of columns of panels.
    size: width and height, in inches.
    **subplots: further arguments of matplotlib's `Figure.subplots`.

  Returns:
    A matplotlib figure and its axes: one, or an array. Needs the `train` extra.
  """
  from matplotlib import figure  # not among the core's dependencies

  whole = figure.Figure(figsize=size, facecolor="white", layout="constrained")
  return whole, whole.subplots(rows, columns, **subplots)


def style_axes(axes: Any, grid: str = "y", labelsize: float = 9.0) -> None:
  """Gives axes that are already drawn the style of all plots.

  The title moves to the left. All spines but the bottom one are removed, as is the
  frame of the legend.

  Args:
    axes: matplotlib axes, with their lines, labels, title and legend.
    grid: the axis with grid lines, `x`, `y` or `both`. An empty string is for images,
      which have neither grid lines nor spines.
    labelsize: the size of the tick labels, in points.
  """
  text = axes.get_title()
  axes.set_title("")
  axes.set_title(text, loc="left", size=labelsize + 2, weight="bold", color=INK, pad=10)
  axes.grid(visible=False)
  if grid:
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.tick_params(which="both", colors=FAINT, length=0, labelsize=labelsize)
  for side, spine in axes.spines.items():
    spine.set_visible(bool(grid) and side == "bottom")
    spine.set_color(GRID)
  for axis in (axes.xaxis, axes.yaxis):
    axis.label.set(color=FAINT, size=labelsize + 0.5)
  legend = axes.get_legend()
  if legend is not None:
    legend.set_frame_on(False)
    for label in legend.get_texts():
      label.set_color(INK)
