"""Colours and names that reports and comparisons share."""

from typing import Any

INK, FAINT, GRID = "#1f2430", "#7a8191", "#e6e8ee"
# Okabe and Ito's colours: told apart with any kind of sight.
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
  """Returns what is trained on what.

  Args:
    config: with `model` and `dataset`.

  Returns:
    Such as `LeNet-5 on MNIST`.
  """
  model, dataset = config["model"], config["dataset"]
  return f"{NAMES.get(model, model)} on {NAMES.get(dataset, dataset)}"


def remove_spines(axes: Any, labelsize: float) -> None:
  """Leaves of a plot's frame its foot, and lines across.

  Args:
    axes: of matplotlib.
    labelsize: of the numbers, in points.
  """
  axes.grid(axis="y", color=GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.tick_params(colors=FAINT, length=0, labelsize=labelsize)
  for side in ("top", "right", "left"):
    axes.spines[side].set_visible(False)
  axes.spines["bottom"].set_color(GRID)
