"""Figures of the scripts on second-order methods and on theory."""

import os

from sparsejax.analysis import new_figure, style_axes


def axes(rows: int, columns: int, width: float = 5.0, height: float = 4.0):
  """Creates a figure with panels of a given size."""
  return new_figure(rows, columns, (width * columns, height * rows))


def save(figure, folder: str, name: str) -> str:
  """Styles the panels, writes `folder/name.png`, and returns its path."""
  for panel in figure.axes:
    style_axes(panel)
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, f"{name}.png")
  figure.savefig(path, dpi=150)
  print(f"Wrote {path}", flush=True)
  return path
