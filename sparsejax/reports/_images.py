"""Masks and filters as PNGs with values as opacity, for any background."""

import base64
import io

import numpy as np
from PIL import Image

_BLUE, _RED = (0, 114, 178), (213, 94, 0)
_MOST_FILTERS = 64


def filters(kernel: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Arranges the filters of an image convolution in a grid.

  Args:
    kernel: float (height, width, in, out).
    mask: bool, of the same shape.

  Returns:
    float (rows, columns) in [-1, 1]: at most 64 filters, each averaged over the live
    weights of `in`, divided by the largest magnitude; NaN where all weights are masked
    and between filters.
  """
  live = np.where(mask, kernel, 0.0).sum(2) / np.maximum(mask.sum(2), 1)
  live = np.where(mask.any(2), live, np.nan)[..., :_MOST_FILTERS]
  height, width, n = live.shape
  columns = int(np.ceil(np.sqrt(2 * n)))
  rows = -(-n // columns)
  grid = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
  for i in range(n):
    top, left = i // columns * (height + 1), i % columns * (width + 1)
    grid[top : top + height, left : left + width] = live[..., i]
  largest = np.nanmax(np.abs(grid)) if np.isfinite(grid).any() else 0.0
  return grid / (largest or 1.0)


def png(values: np.ndarray) -> str:
  """Encodes values as a PNG: opacity is the magnitude, blue positive, orange negative.

  Args:
    values: float (rows, columns) in [-1, 1]; NaN is transparent.

  Returns:
    A `data:` URI.
  """
  blank = ~np.isfinite(values)
  values = np.where(blank, 0.0, values)
  pixels = np.zeros((*values.shape, 4), np.uint8)
  pixels[..., :3] = np.where((values >= 0)[..., None], _BLUE, _RED)
  # A minimum opacity keeps the positions of small values visible.
  alpha = 0.07 + 0.93 * np.clip(np.abs(values), 0, 1)
  pixels[..., 3] = np.where(blank, 0, np.round(255 * alpha))
  buffer = io.BytesIO()
  Image.fromarray(pixels, "RGBA").save(buffer, "PNG", optimize=True)
  return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
