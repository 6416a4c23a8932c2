"""Rules by which each primitive propagates reachability flags.

A forward rule maps `(operation, which elements of the operands vary, which may be other
than zero, shapes of the outputs)` to the same two kinds of flags of the outputs. A
backward rule maps `(operation, wanted elements of the outputs, both kinds of flags of
the operands, shapes of the operands)` to the needed elements of each operand.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.analysis.compaction._constants import Facts
from sparsejax.analysis.jaxpr import _liveness
from sparsejax.analysis.jaxpr._movement import MOVES, move
from sparsejax.analysis.jaxpr._program import Operation

ELEMENTWISE = frozenset(
  [
    *("abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan"),
    *("atan2", "atanh", "cbrt", "ceil", "clamp", "convert_element_type", "copy"),
    *("cos", "cosh", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1"),
    *("floor", "ge", "gt", "integer_pow", "is_finite", "le", "lgamma", "log", "log1p"),
    *("logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not", "or"),
    *("pow", "reduce_precision", "rem", "round", "rsqrt", "select_n", "sign", "sin"),
    *("sinh", "sqrt", "square", "stop_gradient", "sub", "tan", "tanh", "xor"),
  ]
)
REDUCTIONS = frozenset(
  ["reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum"]
)
WINDOWS = frozenset(["reduce_window_max", "reduce_window_min", "reduce_window_sum"])
PRODUCTS = frozenset(["conv_general_dilated", "dot_general"])
# No rule follows single elements through these: their operands and outputs are kept
# whole.
WHOLE = frozenset(["argmax", "argmin"])


def window_axes(operation: Operation) -> tuple[int, ...]:
  """Returns the axes along which a window spans more than one element."""
  p = operation.params
  rows = zip(
    p["window_dimensions"],
    p["window_strides"],
    p["padding"],
    p["base_dilation"],
    p["window_dilation"],
    strict=True,
  )
  return tuple(
    a
    for a, (size, stride, pads, *dilations) in enumerate(rows)
    if size > 1 or stride > 1 or any(pads) or max(dilations) > 1
  )


def rules(operation: Operation, facts: Facts) -> tuple[Callable, Callable]:
  """Returns the forward and the backward rule of an operation, or raises ValueError."""
  name = operation.name
  if name in MOVES:
    varying = [not facts.is_constant(i) for i in operation.inputs]
    if name == "tile" or (name == "pad" and varying[1]):
      raise _unknown(name)
    return _move_forward, _move_backward
  if name in ELEMENTWISE:
    return _elementwise_forward, _elementwise_backward
  if name in REDUCTIONS:
    return _reduce_forward, _reduce_backward
  if name in WINDOWS:
    return _window_forward, _window_backward
  if name in PRODUCTS:
    return _product_forward, _product_backward
  looked_up = name == "gather" and facts.is_constant(operation.inputs[0])
  if name in WHOLE or looked_up:
    return _whole_forward, _whole_backward
  raise _unknown(name)


def _unknown(name: str) -> ValueError:
  return ValueError(
    f"compact cannot follow units through {name!r}: apply_fn must be made of dense and "
    "convolutional products, elementwise functions, sums and maxima, reshapes, "
    "concatenations and the like."
  )


def _move_forward(operation, flags, live, shapes):
  name, p = operation.name, operation.params
  if name == "pad":
    flags = [flags[0], np.zeros((), bool)]
    return move(name, p, shapes, flags), move(name, p, shapes, live)
  return move(name, p, shapes, flags), move(name, p, shapes, live)


def _move_backward(operation, wanted, flags, live, shapes):
  """Finds the source of every wanted element by moving an array of element numbers."""
  del flags, live
  ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes])
  places = [
    np.arange(end - np.prod(shape, dtype=int), end).reshape(shape)
    for shape, end in zip(shapes, ends, strict=True)
  ]
  flat = np.zeros(ends[-1], bool)
  outs = [w.shape for w in wanted]
  for want, source in zip(
    wanted, move(operation.name, operation.params, outs, places), strict=True
  ):
    flat[source[want]] = True
  return [flat[p] for p in places]


def _elementwise_forward(operation, flags, live, shapes):
  name = operation.name
  shape = shapes[0]
  varies = np.zeros(shape, bool)
  for i, flag in enumerate(flags):
    varies = varies | (flag & _others(name, i, live))
  nonzero = _liveness.elementwise(name, operation.params, live)
  return [varies], [np.broadcast_to(True if nonzero is None else nonzero, shape)]


def _elementwise_backward(operation, wanted, flags, live, shapes):
  del flags
  needs = []
  for i, shape in enumerate(shapes):
    need = wanted[0] & _others(operation.name, i, live)
    needs.append(_sum_to(need, shape))
  return needs


def _others(name: str, i: int, live) -> Any:
  """Returns where operand `i` matters: in a product, where the other is not zero."""
  if name in ("mul", "and"):
    return live[1 - i]
  return live[0] if name == "div" and i == 1 else np.ones((), bool)


def _sum_to(flags: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Reduces flags to an operand's shape, over the axes along which it was broadcast."""
  if len(shape) < flags.ndim:
    return np.broadcast_to(flags.any(), shape)
  axes = [a for a, s in enumerate(shape) if s == 1 and flags.shape[a] != 1]
  return np.asarray(flags.any(tuple(axes), keepdims=True))


def _reduce_forward(operation, flags, live, shapes):
  del shapes
  axes = tuple(operation.params["axes"])
  return [np.any(flags[0], axes)], [np.any(live[0], axes)]


def _reduce_backward(operation, wanted, flags, live, shapes):
  del flags, live
  return [
    np.broadcast_to(np.expand_dims(wanted[0], tuple(operation.params["axes"])), shape)
    for shape in shapes
  ]


def _window_forward(operation, flags, live, shapes):
  axes = window_axes(operation)
  spread = lambda f: np.broadcast_to(f.any(axes, keepdims=True), shapes[0])
  # The border is filled with the neutral element of the maximum or sum, so it adds no
  # flags.
  return [spread(flags[0])], [spread(live[0])]


def _window_backward(operation, wanted, flags, live, shapes):
  del flags, live
  axes = window_axes(operation)
  return [np.broadcast_to(wanted[0].any(axes, keepdims=True), shapes[0])]


def _whole_forward(operation, flags, live, shapes):
  """Marks all output elements as varying if any operand element varies."""
  del operation, live
  ones = [np.ones(shape, bool) for shape in shapes]
  varies = [one & any(f.any() for f in flags) for one in ones]
  return varies, ones


def _whole_backward(operation, wanted, flags, live, shapes):
  """Marks all operand elements as needed if any output element is wanted."""
  del operation, flags, live
  return [np.broadcast_to(any(w.any() for w in wanted), shape) for shape in shapes]


def _product_forward(operation, flags, live, shapes):
  del shapes
  varies = _product(operation, flags[0], live[1])
  if flags[1].any():
    varies = varies | _product(operation, live[0], flags[1])
  return [varies], [_product(operation, *live)]


def _product_backward(operation, wanted, flags, live, shapes):
  # A weight on a constant input only contributes to a constant, so it need not be kept.
  others = [live[1], flags[0] if not flags[1].any() else live[0]]
  if not flags[0].any():
    others[0] = flags[1]
  return [
    _transposed(operation, side, others[side], wanted[0], shapes) for side in range(2)
  ]


def _product(operation: Operation, left: np.ndarray, right: np.ndarray) -> np.ndarray:
  """Returns where at least one of the summed products has two flagged factors."""
  if operation.name == "dot_general":
    letters = _liveness.letters(
      (left.ndim, right.ndim), operation.params["dimension_numbers"]
    )
    return _liveness.einsum((left, right), letters[:2], letters[2])
  return np.asarray(_convolve(operation)(*map(_float, (left, right)))) > 0


def _transposed(operation, side, other, wanted, shapes) -> np.ndarray:
  """Returns which elements of one operand are needed, given the flags of the other."""
  if operation.name == "dot_general":
    letters = _liveness.letters(
      tuple(map(len, shapes)), operation.params["dimension_numbers"]
    )
    pair = (letters[2], letters[1 - side])
    return _liveness.einsum((wanted, other), pair, letters[side])
  convolve = _convolve(operation)
  operands = [_float(other), _float(other)]
  operands[side] = jnp.zeros(shapes[side], jnp.float32)
  pull = jax.vjp(convolve, *operands)[1]
  return np.asarray(pull(_float(wanted))[side]) > 0


def _float(flags: np.ndarray) -> jax.Array:
  """Converts flags to float32, so that products can count them."""
  return jnp.asarray(flags, jnp.float32)


def _convolve(operation: Operation) -> Callable:
  """Returns the convolution of an operation as a function of float32 operands."""
  p = {**operation.params, "preferred_element_type": jnp.dtype("float32")}
  return lambda left, right: operation.primitive.bind(left, right, **p)
