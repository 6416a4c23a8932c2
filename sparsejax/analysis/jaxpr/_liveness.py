"""Flags of the elements that may be nonzero, in values made of parameters alone."""

from typing import Any

import numpy as np

from sparsejax.analysis.jaxpr._movement import MOVES, move

_PRODUCTS = ("and", "mul")
_SUMS = ("add", "add_any", "max", "min", "or", "sub")
_KEEP_ZERO = (
  *("abs", "ceil", "cbrt", "div", "erf", "expm1", "floor", "imag"),
  *("log1p", "neg", "real", "round", "sign", "sin", "sinh", "sqrt", "square", "tan"),
  "tanh",
)
_REDUCTIONS = ("reduce_max", "reduce_min", "reduce_or", "reduce_sum")


def read(value, shapes, live) -> np.ndarray:
  """Returns which elements of a value may be nonzero; all if nothing is known of it."""
  if not isinstance(value, int):
    return np.asarray(value) != 0
  found = live.get(value)
  return np.broadcast_to(True, shapes[value]) if found is None else found


def propagate(operation, shapes, live) -> list[np.ndarray]:
  """Returns which elements of an operation's outputs may be nonzero."""
  arrays = [read(i, shapes, live) for i in operation.inputs]
  wanted = [shapes[i] for i in operation.outputs]
  name, p = operation.name, operation.params
  if name in MOVES:
    return move(name, p, wanted, arrays)
  if name in _REDUCTIONS:
    return [np.any(arrays[0], tuple(p["axes"]))]
  if name == "dot_general":
    dims = letters((arrays[0].ndim, arrays[1].ndim), p["dimension_numbers"])
    return [einsum(arrays, dims[:2], dims[2])]
  out = elementwise(name, p, arrays)
  return [np.broadcast_to(True if out is None else out, shape) for shape in wanted]


def elementwise(name: str, params: dict, arrays: list[np.ndarray]):
  """Returns the same for an elementwise primitive; None for an unknown one."""
  if name in _PRODUCTS:
    return arrays[0] & arrays[1]
  if name in _SUMS:
    return arrays[0] | arrays[1]
  if name == "select_n":
    which, first, *rest = arrays
    return np.where(which, np.any([first, *rest], 0), first)
  if name in _KEEP_ZERO or (name == "integer_pow" and params["y"] > 0):
    return arrays[0]
  return None


def letters(ranks: tuple[int, ...], dimension_numbers) -> tuple[list[int], ...]:
  """Returns the `np.einsum` subscripts of a `dot_general`: operands and result."""
  axes, batch = dimension_numbers
  left, right = (np.full(rank, -1) for rank in ranks)
  fresh = iter(range(52))
  for pair in (*zip(*batch, strict=True), *zip(*axes, strict=True)):
    left[pair[0]] = right[pair[1]] = next(fresh)
  free = []
  for side in (left, right):
    side[side < 0] = [next(fresh) for _ in range(np.count_nonzero(side < 0))]
    free += [x for x in side.tolist() if x not in left or x not in right]
  out = [int(left[i]) for i in batch[0]] + free
  return left.tolist(), right.tolist(), out


def einsum(arrays, subscripts, out) -> np.ndarray:
  """Returns where any of the summed products has two true factors."""
  pairs = zip(arrays, subscripts, strict=True)
  rows: Any = [part for a, s in pairs for part in (np.asarray(a, np.float32), s)]
  return np.einsum(*rows, out, optimize=True) > 0
