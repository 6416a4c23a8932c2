"""Plots of a synthesis: connections over epochs, and connections per input pixel."""

import os
import pathlib
from typing import Any

import numpy as np
from matplotlib import figure

from sparsejax.analysis import FAINT, line_colors, new_figure, style_axes
from sparsejax.experiments.nest import _milestones
from sparsejax.training import read_metrics


def write(workdir: os.PathLike | str) -> None:
  """Writes `connections.png` and `inputs.png` to the directory of a finished run.

  `inputs.png` is written only for square images and a dense first layer.

  Args:
    workdir: the directory passed to `grow_and_prune`.
  """
  path = pathlib.Path(workdir)
  records = read_metrics(path)
  milestones = _milestones.read(path)
  connections(records, milestones).savefig(path / "connections.png", dpi=160)
  masks = []
  for i, _ in enumerate(milestones):
    mask = _milestones.load(path, i)[2]
    first = mask[min(mask)]["kernel"]
    if first.ndim == 2 and round(first.shape[0] ** 0.5) ** 2 == first.shape[0]:
      masks.append(np.asarray(first))
  if masks:
    inputs(masks).savefig(path / "inputs.png", dpi=160)


def connections(
  records: list[dict[str, Any]], milestones: list[dict[str, Any]]
) -> figure.Figure:
  """Plots each layer's live connections over epochs, with the milestones marked.

  Args:
    records: the run's metrics, from `read_metrics`.
    milestones: the run's milestones, from `read_milestones`.

  Returns:
    A figure of one panel with a logarithmic vertical axis.
  """
  fig, axes = new_figure(size=(7.5, 4.5))
  epochs = [r["epoch"] for r in records]
  total = [r["connections"] for r in records]
  axes.plot(epochs, total, color="black", linewidth=2, label="all")
  live = records[0]["live"]
  for name, color in zip(live, line_colors(len(live)), strict=True):
    counts = [max(r["live"][name], 1) for r in records]
    label = name.removesuffix("/kernel")
    axes.plot(epochs, counts, color=color, linewidth=1.5, label=label)
  for m in milestones:
    axes.axvline(m["epochs"], color=FAINT, linewidth=0.8, linestyle=":")
    text = f"{m['parameters']:,}\n{m['test_error_percent']:.2f} %"
    axes.annotate(text, (m["epochs"], max(total)), ha="right", va="top", size=8)
  axes.set(yscale="log", xlabel="epoch", ylabel="live connections")
  axes.legend()
  style_axes(axes)
  return fig


def inputs(masks: list[np.ndarray]) -> figure.Figure:
  """Plots the number of connections of each pixel of a square image.

  Args:
    masks: masks of the first dense layer, bool (pixels, features), one per panel.

  Returns:
    A figure with one panel per mask; pixels without connections are white.
  """
  fig, panels = new_figure(1, len(masks), (3.2 * len(masks), 3.6), squeeze=False)
  for axes, mask in zip(panels[0], masks, strict=True):
    counts = mask.sum(axis=1)
    side = round(len(counts) ** 0.5)
    image = np.where(counts > 0, counts, np.nan).reshape(side, side)
    axes.imshow(image, cmap="viridis")
    axes.set_title(f"{int((counts > 0).sum())} of {len(counts)} pixels")
    axes.set(xticks=[], yticks=[])
    style_axes(axes, grid="")
  return fig
