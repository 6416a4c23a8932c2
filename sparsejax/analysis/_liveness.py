"""Which elements of a value made of parameters may be other than zero."""

import numpy as np

from sparsejax.analysis._movement import MOVES, move

_PRODUCTS = ("and", "mul")
_SUMS = ("add", "add_any", "max", "min", "or", "sub")
_KEEP_ZERO = (
  *("abs", "ceil", "cbrt", "div", "erf", "expm1", "floor", "imag"),
  *("log1p", "neg", "real", "round", "sign", "sin", "sinh", "sqrt", "square", "tan"),
  "tanh",
)
_REDUCTIONS = ("reduce_max", "reduce_min", "reduce_or", "reduce_sum")


def read(value, shapes, live) -> np.ndarray:
  """Which elements of a value made of parameters may be other than zero."""
  if not isinstance(value, int):
    return np.asarray(value) != 0
  found = live.get(value)
  return np.broadcast_to(True, shapes[value]) if found is None else found


def propagate(operation, shapes, live) -> list[np.ndarray]:
  """Which elements of an operation's outputs may be other than zero."""
  arrays = [read(i, shapes, live) for i in operation.inputs]
  wanted = [shapes[i] for i in operation.outputs]
  name, p = operation.name, operation.params
  if name in MOVES:
    return move(name, p, wanted, arrays)
  if name in _REDUCTIONS:
    return [np.any(arrays[0], tuple(p["axes"]))]
  if name == "dot_general":
    return [_dot(arrays, p["dimension_numbers"]).reshape(wanted[0])]
  if name in _PRODUCTS:
    out = arrays[0] & arrays[1]
  elif name in _SUMS:
    out = arrays[0] | arrays[1]
  elif name == "select_n":
    which, first, *rest = arrays
    out = np.where(which, np.any([first, *rest], 0), first)
  elif name in _KEEP_ZERO or (name == "integer_pow" and p["y"] > 0):
    out = arrays[0]
  else:
    return [np.broadcast_to(True, shape) for shape in wanted]
  return [np.broadcast_to(out, wanted[0])]


def _dot(arrays, dimension_numbers) -> np.ndarray:
  (axes, batch) = dimension_numbers
  letters = [[None] * array.ndim for array in arrays]
  fresh = iter(range(52))
  for pair in (zip(*batch, strict=True), zip(*axes, strict=True)):
    for i, j in pair:
      letters[0][i] = letters[1][j] = next(fresh)
  for row in letters:
    row[:] = [next(fresh) if letter is None else letter for letter in row]
  shared = [letters[0][i] for i in batch[0]]
  rest = [x for row in letters for x in row if x not in {*letters[0]} & {*letters[1]}]
  a, b = (array.astype(np.float32) for array in arrays)
  return np.einsum(a, letters[0], b, letters[1], [*shared, *rest], optimize=True) > 0
