"""Draws docs/assets/overview.png from a run of LeNet-300-100 and from the results.

  python scripts/train.py --config=configs/mnist_lenet300.py --workdir=runs/lenet300
  python -m scripts.site.readme_figure --workdir=runs/lenet300

Left: the budgets that sparse momentum moves between layers. Middle: the pixels that
stay connected. Right: the test error over the density, next to the paper's.
"""

import json
import pathlib
import re

import numpy as np
from absl import flags, logging
from matplotlib import ticker

from scripts import ROOT
from scripts.reproduce.sparse_momentum.published import PAPER
from sparsejax.analysis import (
  COLORS,
  FAINT,
  input_connectivity,
  new_figure,
  style_axes,
)
from sparsejax.experiments import command_line
from sparsejax.reports import read_run

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory of a finished run.", required=True
)
_OUT = flags.DEFINE_string(
  "out", str(ROOT / "docs/assets/overview.png"), "The image to write."
)
RESULTS = ROOT / "results/mnist_sparse_momentum.json"


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.ERROR)
  (run,) = read_run([_WORKDIR.value])
  fig, panels = new_figure(1, 3, (12, 3.7), width_ratios=(1.25, 0.9, 1.15))
  left, middle, right = panels
  budgets(left, run)
  name, mask = next(iter(run.masks.items()))
  assert run.image_shape is not None
  pixels = input_connectivity(mask, run.image_shape).sum(-1)
  middle.imshow(pixels, cmap="Blues")
  middle.set(xticks=[], yticks=[])
  middle.set_title(f"Live weights of each pixel, {name.removesuffix('/kernel')}")
  errors(right)
  for axes in panels:
    style_axes(axes, "" if axes is middle else "y")
  out = pathlib.Path(_OUT.value)
  out.parent.mkdir(parents=True, exist_ok=True)
  fig.savefig(out, dpi=130)
  print(f"Wrote {out}.")


def budgets(axes, run) -> None:
  records = [r for r in run.records if "live" in r]
  epochs = [r["epoch"] for r in records]
  for (name, size), color in zip(run.sizes.items(), COLORS, strict=False):
    live = np.array([np.mean(r["live"][name]) for r in records])
    axes.plot(epochs, live, color=color, lw=2)
    text = f"{name.removesuffix('/kernel')}, {live[-1] / size:.0%} live"
    axes.annotate(
      text, (epochs[-1], live[-1]), xytext=(-4, 5), textcoords="offset points",
      color=color, size=9, ha="right",
    )  # fmt: skip
  axes.set_yscale("log")
  axes.set_xlim(0, epochs[-1])
  axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f"{v:,.0f}"))
  axes.yaxis.set_minor_locator(ticker.NullLocator())
  axes.set_xlabel("epoch")
  density = sum(run.live.values()) / sum(run.sizes.values())
  axes.set_title(f"Live weights by layer, {density:.0%} in all")


def density(case: str) -> float:
  return float(case.split("=")[1])


def errors(axes) -> None:
  rows = json.loads(RESULTS.read_text())["rows"]
  rows = [r for r in rows if re.fullmatch(r"lenet300/density=[\d.]+", r["case"])]
  rows.sort(key=lambda r: density(r["case"]))
  x = [density(r["case"]) for r in rows]
  axes.errorbar(
    x, [r["paper"] for r in rows], [PAPER[r["case"]][1] for r in rows], fmt="o--",
    capsize=2, mfc="none", color=FAINT, label="the paper",
  )  # fmt: skip
  axes.errorbar(
    x, [r["mean"] for r in rows], [r["sem"] or 0 for r in rows], marker="o", ms=5,
    capsize=2, color=COLORS[0], label=f"SparseJAX, {rows[0]['n']} seeds",
  )  # fmt: skip
  axes.set_xscale("log")
  axes.xaxis.set_major_locator(ticker.FixedLocator([0.01, 0.02, 0.05, 0.1]))
  axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f"{v:.0%}"))
  axes.xaxis.set_minor_locator(ticker.NullLocator())
  axes.set_xlabel("weights kept")
  axes.legend(fontsize=9.5)
  axes.set_title("LeNet-300-100 on MNIST: test error, %")


if __name__ == "__main__":
  command_line.run(main)
