"""Statistics of tickets: layer densities, overlap, connectivity, images of masks."""

from typing import Any

import jax
import numpy as np

from sparsejax.core import path_string

PyTree = Any


def layer_densities(masks: PyTree) -> dict[str, float]:
  """Computes the density of every layer.

  Args:
    masks: tree of bool arrays, None at leaves without a mask.

  Returns:
    Live weights / weights, by path.

  Example:
    >>> layer_densities({"a": np.array([[True, False]]), "b": None})
    {'a': 0.5}
  """
  return {name: float(m.mean()) for name, m in _named(masks).items()}


def overlap(first: PyTree, second: PyTree) -> dict[str, tuple[float, float]]:
  """Computes the overlap of two tickets per layer, and the overlap expected by chance.

  J = |A and B| / |A or B|;  by chance p q / (p + q - p q), for layers of densities p, q

  Args:
    first: tree of bool arrays, None at leaves without a mask.
    second: tree of the same structure.

  Returns:
    `(J, J by chance)` by path, and over the weights of all layers as "all"; NaN where
    nothing is live.

  Raises:
    ValueError: the layers or their shapes differ.

  Example:
    >>> a, b = np.array([[True, True, False, False]]), np.array([[True, False] * 2])
    >>> found = overlap({"kernel": a}, {"kernel": b})
    >>> [round(x, 3) for x in found["kernel"]]
    [0.333, 0.333]
  """
  a, b = _named(first), _named(second)
  shapes = [{name: m.shape for name, m in x.items()} for x in (a, b)]
  if shapes[0] != shapes[1]:
    raise ValueError(
      f"masks must have the same layers, got {shapes[0]} and {shapes[1]}."
    )
  found, sums = {}, np.zeros(4)
  for name in a:
    n, p, q = a[name].size, a[name].mean(), b[name].mean()
    both, either = (a[name] & b[name]).sum(), (a[name] | b[name]).sum()
    counts = np.array([both, either, n * p * q, n * (p + q - p * q)], float)
    found[name] = _ratios(counts)
    sums += counts
  return {**found, "all": _ratios(sums)}


def input_connectivity(mask: np.ndarray, image_shape: tuple[int, ...]) -> np.ndarray:
  """Counts the live weights of each input pixel, which shows where a ticket looks.

  Args:
    mask: bool (inputs, outputs), the mask of the first dense layer.
    image_shape: shape of an image, (height, width) or (height, width, channels).

  Returns:
    int (height, width) or (height, width, channels).

  Raises:
    ValueError: the layer does not have one input per pixel.

  Example:
    >>> input_connectivity(np.array([[True, True], [False, True]]), (1, 2)).tolist()
    [[2, 1]]
  """
  mask = np.asarray(mask)
  if mask.ndim != 2 or mask.shape[0] != int(np.prod(image_shape)):
    raise ValueError(
      f"mask must have a row for each of the {int(np.prod(image_shape))} pixels of "
      f"{image_shape}, got shape {mask.shape}."
    )
  return mask.sum(1).reshape(image_shape)


def mask_image(mask: np.ndarray, longest: int = 128) -> np.ndarray:
  """Computes the density of a layer in blocks of inputs and outputs.

  Args:
    mask: bool (..., in, out); leading axes, such as a kernel's positions, are averaged.
    longest: the maximum number of rows and of columns.

  Returns:
    float (rows, columns) in [0, 1]: the mean of each block.

  Example:
    >>> mask_image(np.array([[True, False], [True, True]]))
    array([[1., 0.],
           [1., 1.]])
  """
  dense = mask.reshape(-1, *mask.shape[-2:]).mean(0)
  for axis in (0, 1):
    n = dense.shape[axis]
    if n > longest:
      starts = np.linspace(0, n, longest + 1).astype(int)
      lengths = np.diff(starts)
      sums = np.add.reduceat(dense, starts[:-1], axis=axis)
      dense = sums / (lengths[:, None] if axis == 0 else lengths)
  return dense


def _named(masks: PyTree) -> dict[str, np.ndarray]:
  leaves = jax.tree_util.tree_leaves_with_path(masks)
  return {path_string(path): np.asarray(m) for path, m in leaves}


def _ratios(counts) -> tuple[float, float]:
  both, either, chance, chance_either = counts
  return (
    float(both / either) if either else float("nan"),
    float(chance / chance_either) if chance_either else float("nan"),
  )
