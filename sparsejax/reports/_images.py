"""Images of masks and filters, as PNGs with values as opacity, for any background."""

import base64
import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from sparsejax.analysis import input_connectivity, mask_image
from sparsejax.reports._run import Found

_BLUE, _ORANGE = (0, 114, 178), (213, 94, 0)
_MOST_FILTERS = 64
_MOST_LAYERS = 7


class Picture(NamedTuple):
  """An image of a layer.

  Attributes:
    name: the layer's name.
    text: how to read the image.
    width: the number of columns.
    height: the number of rows.
    source: the image, as a `data:` URI.
  """

  name: str
  text: str
  width: int
  height: int
  source: str


def pictures(run: Found) -> Iterator[Picture]:
  """Yields images of the first layers of a run: filters, pixels or connections."""
  for i, (name, mask) in enumerate(list(run.masks.items())[:_MOST_LAYERS]):
    shape = run.image_shape if i == 0 else None
    if mask.ndim == 4 and mask.shape[2] in (1, 3):
      values = filters(run.params[name], mask)
      text = f"{min(mask.shape[-1], _MOST_FILTERS)} filters; blank: dead"
    elif shape and mask.shape[:-1] == (int(np.prod(shape)),):
      values = input_connectivity(mask, shape).sum(-1)
      text = f"live weights of each input pixel, 0 to {values.max()}"
    elif mask.ndim >= 2:
      values = mask_image(mask)
      text = f"inputs down, outputs across; density 0 to {values.max():.2g}"
      if values.shape[0] > 2 * values.shape[1]:
        values = values.T
        text = text.replace("inputs down, outputs", "outputs down, inputs")
    else:
      continue
    values = values / (np.nanmax(np.abs(values), initial=0) or 1)
    height, width = values.shape
    yield Picture(name.removesuffix("/kernel"), text, width, height, png(values))


def filters(kernel: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Arranges the filters of an image convolution in a grid.

  Args:
    kernel: float (height, width, in, out).
    mask: bool, of the same shape.

  Returns:
    float (rows, columns): at most 64 filters, each averaged over the live weights of
    `in`; NaN where all weights are masked and between filters.
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
  return grid


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
  pixels[..., :3] = np.where((values >= 0)[..., None], _BLUE, _ORANGE)
  # A minimum opacity keeps the positions of small values visible.
  alpha = 0.07 + 0.93 * np.clip(np.abs(values), 0, 1)
  pixels[..., 3] = np.where(blank, 0, np.round(255 * alpha))
  buffer = io.BytesIO()
  Image.fromarray(pixels, "RGBA").save(buffer, "PNG", optimize=True)
  return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
