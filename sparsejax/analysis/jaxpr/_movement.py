"""Primitives that only move elements, for NumPy arrays of any dtype.

The same move is applied to values, to flags of elements, and to element numbers: moving
an array of numbers shows where each output element comes from.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def _broadcast(p, shape, a):
  wide = [1] * len(shape)
  for axis, size in zip(p["broadcast_dimensions"], a.shape, strict=True):
    wide[axis] = size
  return np.broadcast_to(a.reshape(wide), shape)


def _slice(p, shape, a):
  del shape
  strides = p["strides"] or (1,) * a.ndim
  limits = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
  return a[tuple(slice(*limit) for limit in limits)]


def _rev(p, shape, a):
  del shape
  return np.flip(a, p["dimensions"])


# Primitives of one array and one output: `(params, shape of the output, array)`. The
# shape is passed because it depends on the batch size, which `params` does not know.
_ONE: dict[str, Callable[..., np.ndarray]] = {
  "broadcast_in_dim": _broadcast,
  "convert_element_type": lambda p, shape, a: a,
  "copy": lambda p, shape, a: a,
  "copy_p": lambda p, shape, a: a,
  "expand_dims": lambda p, shape, a: a.reshape(shape),
  "reduce_precision": lambda p, shape, a: a,
  "reshape": lambda p, shape, a: a.reshape(shape),
  "rev": _rev,
  "slice": _slice,
  "squeeze": lambda p, shape, a: a.reshape(shape),
  "stop_gradient": lambda p, shape, a: a,
  "tile": lambda p, shape, a: np.tile(a, p["reps"]),
  "transpose": lambda p, shape, a: a.transpose(p["permutation"]),
}
RESHAPES = frozenset(["expand_dims", "reshape", "squeeze"])
MOVES = frozenset(
  {*_ONE, "concatenate", "optimization_barrier", "pad", "split", "stack"}
)


def move(
  name: str,
  params: dict[str, Any],
  shapes: Sequence[tuple[int, ...]],
  arrays: Sequence[np.ndarray],
  fill: Any = None,
) -> list[np.ndarray]:
  """Applies a primitive of `MOVES`.

  Args:
    name: name of the primitive.
    params: parameters of the primitive.
    shapes: shapes of its outputs.
    arrays: its operands; the second operand of `pad` is the fill value.
    fill: an array of the shape of `pad`'s output whose elements are used as padding;
      None uses the fill value.

  Returns:
    The outputs.
  """
  if name == "concatenate":
    return [np.concatenate(arrays, params["dimension"])]
  if name == "stack":
    return [np.stack(arrays, params["axis"])]
  if name == "split":
    ends = np.cumsum(params["sizes"])[:-1]
    return list(np.split(arrays[0], ends, params["axis"]))
  if name == "optimization_barrier":
    return list(arrays)
  if name == "pad":
    filled = np.full(shapes[0], arrays[1]) if fill is None else fill.copy()
    return [_pad(arrays[0], params["padding_config"], filled)]
  return [_ONE[name](params, shapes[0], arrays[0])]


def _pad(a: np.ndarray, config, filled: np.ndarray) -> np.ndarray:
  source, target = [], []
  for size, out, (low, _, interior) in zip(a.shape, filled.shape, config, strict=True):
    places = int(low) + np.arange(size) * (int(interior) + 1)
    inside = (places >= 0) & (places < out)
    source.append(np.flatnonzero(inside))
    target.append(places[inside])
  filled[np.ix_(*target)] = a[np.ix_(*source)]
  return filled
