"""The colors and display names that reports and comparisons share."""

from typing import Any

INK, FAINT, GRID = "#1f2430", "#7a8191", "#e6e8ee"
# Based on Okabe and Ito's palette, which is safe for color-blind readers.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f5fc7")
NAMES = {
  "ac_dc": "AC/DC",
  "cifar10": "CIFAR-10",
  "deep_r": "Deep-R",
  "dsr": "DSR",
  "fashion_mnist": "Fashion-MNIST",
  "grasp": "GraSP",
  "lenet300": "LeNet-300-100",
  "lenet5": "LeNet-5",
  "mlp": "MLP",
  "mnist": "MNIST",
  "rigl": "RigL",
  "snfs": "SNFS",
  "snip": "SNIP",
  "sparse_evolution": "SET",
  "sr_ste": "SR-STE",
  "synflow": "SynFlow",
  "top_kast": "Top-KAST",
}


def method_name(method: str) -> str:
  """Returns a method's name as papers write it."""
  return NAMES.get(method, method.replace("_", " ").capitalize())


def title(config: Any) -> str:
  """Returns a run's title, the model and the data set.

  Args:
    config: a config or dict with `model` and `dataset`.

  Returns:
    A text such as `LeNet-5 on MNIST`.
  """
  model, dataset = config["model"], config["dataset"]
  return f"{NAMES.get(model, model)} on {NAMES.get(dataset, dataset)}"


def remove_spines(axes: Any, labelsize: float) -> None:
  """Removes all spines but the bottom one, and draws horizontal grid lines.

  Args:
    axes: matplotlib axes.
    labelsize: the size of the tick labels, in points.
  """
  axes.grid(axis="y", color=GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.tick_params(colors=FAINT, length=0, labelsize=labelsize)
  for side in ("top", "right", "left"):
    axes.spines[side].set_visible(False)
  axes.spines["bottom"].set_color(GRID)
