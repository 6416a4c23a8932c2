"""Batch axes and constants of a traced program."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.analysis.jaxpr import _program
from sparsejax.analysis.jaxpr._movement import MOVES, move
from sparsejax.analysis.jaxpr._program import Operation, Program


class Facts:
  """Constants and batch axes of a traced program, with shapes for a batch of one.

  Attributes:
    program: traced at a batch of two.
    shapes: shapes of all values, at a batch of one.
    batch: `{value: {axis: its size at a batch of one}}`, for the axes that grow with
      the batch.
    constants: values that depend on parameters and literals alone, at a batch of one.
    stacked: the constants with a leading axis over the iterations of a loop.
    made_of: paths of the parameters that each constant is computed from.
  """

  def __init__(self, two: Program, three: Program, leaves: Sequence[Any], paths):
    self.program = two
    self.batch = _batch_axes(two, three)
    self.shapes = {
      i: tuple(self.batch[i].get(a, s) for a, s in enumerate(shape))
      for i, shape in two.shapes.items()
    }
    self.constants: dict[int, np.ndarray] = {}
    self.stacked: set[int] = set()
    self.made_of: dict[int, tuple[str, ...]] = {}
    self.varying = _all_varying(two)
    self._producers: dict[int, Operation] = {}
    self._outside: dict[int, int] = {}  # what a loop's constants are outside of it
    self._whole: dict[int, Any] = {}
    for number, leaf, path in zip(two.params, leaves, paths, strict=True):
      self._set(number, leaf, (path,))
    self._evaluate(two)
    del self._whole

  def is_constant(self, value: Any) -> bool:
    """Returns whether a value is a literal or depends on parameters alone."""
    return not isinstance(value, int) or value not in self.varying

  def array(self, value: Any) -> Any:
    """Returns the array of a constant or a literal."""
    return self.constants[value] if isinstance(value, int) else value

  def paths(self, value: Any) -> tuple[str, ...]:
    """Returns the paths of the parameters that a constant or literal depends on."""
    return self.made_of[value] if isinstance(value, int) else ()

  def shape(self, value: Any) -> tuple[int, ...]:
    """Returns the shape of a value or a literal, at a batch of one."""
    return self.shapes[value] if isinstance(value, int) else np.shape(value)

  def variables(self, operation: Operation) -> list[int]:
    """Returns the operands that depend on the input."""
    return [i for i in operation.inputs if not self.is_constant(i)]

  def nonzero(self, value: Any) -> np.ndarray:
    """Returns which elements of a constant are not zero, in any iteration of a loop."""
    if not isinstance(value, int):
      return np.asarray(value) != 0
    flags = self.constants[value] != 0
    return flags.any(0) if value in self.stacked else flags

  def places(self, value: Any) -> tuple[int, np.ndarray] | None:
    """Finds the parameter whose elements a constant rearranges.

    Args:
      value: a literal or the number of a constant.

    Returns:
      The parameter's number, and for each element of the constant its index in the flat
      parameter; None if the constant depends on several parameters, or on arithmetic.
    """
    found = self._places(value)
    if found is None:
      return None
    leaf, array = found
    # A constant can have the batch axis by broadcasting; keep one example of it.
    for axis, size in self.batch[value].items():
      array = array.take(np.arange(size), axis)
    return leaf, array

  def _places(self, value: Any) -> tuple[int, np.ndarray] | None:
    """Traces a constant back to a parameter by moving an array of element indices."""
    if not isinstance(value, int) or value in self.stacked:
      return None
    if value in self.program.params:
      shape = self.program.shapes[value]
      return value, np.arange(np.prod(shape, dtype=int)).reshape(shape)
    if value in self._outside:
      return self._places(self._outside[value])
    operation = self._producers.get(value)
    if operation is None or operation.name not in MOVES:
      return None
    source, *others = operation.inputs
    found = None if others else self._places(source)
    if found is None:
      return None
    shapes = [self.program.shapes[i] for i in operation.outputs]
    moved = move(operation.name, operation.params, shapes, [found[1]])
    return found[0], moved[operation.outputs.index(value)]

  def _set(self, number, value, made_of, stacked=False) -> None:
    """Stores a constant, reduced to one example; all examples must be equal."""
    self._whole[number] = value
    self.made_of[number] = made_of
    if stacked:
      self.stacked.add(number)
    if jnp.issubdtype(value.dtype, jax.dtypes.extended):
      return
    small = np.asarray(value)
    for axis, size in self.batch[number].items():
      small, rest = np.split(small, [size], axis + stacked)
      if not np.array_equal(small, rest, equal_nan=small.dtype.kind == "f"):
        raise ValueError(
          "apply_fn must treat all examples alike, got a constant that differs "
          "between the first and the second."
        )
    self.constants[number] = small

  def _evaluate(self, program: Program) -> None:
    """Computes the constants of a program, and those inside of its loops."""
    for number, value in program.constants.items():
      self._set(number, value, ())
    for operation in program.operations:
      if self.varying.isdisjoint(operation.outputs):
        self._fold(operation)
      elif operation.name == "scan":
        self._enter(operation)

  def _fold(self, operation: Operation) -> None:
    """Computes the outputs of an operation whose operands are all constants."""
    ids = list(_program.operands(operation))
    stacked = not self.stacked.isdisjoint(ids)
    made_of = dict.fromkeys(path for i in ids for path in self.made_of[i])
    values = [self._whole[i] if isinstance(i, int) else i for i in operation.inputs]
    shapes = [self.program.shapes[i] for i in operation.outputs]
    # Moves are done in NumPy, which accepts any array; everything else is bound, mapped
    # over the loop's iterations where an operand is stacked. Reduced precision moves
    # nothing, but changes the values.
    moves = operation.name in MOVES and operation.name != "reduce_precision"
    if moves and not stacked:
      arrays = [np.asarray(value) for value in values]
      outputs = move(operation.name, operation.params, shapes, arrays)
      if operation.name == "convert_element_type":
        outputs = [outputs[0].astype(operation.params["new_dtype"])]
    else:
      outputs = self._bind(operation, values, stacked)
    for number, value in zip(operation.outputs, outputs, strict=True):
      self._set(number, value, tuple(made_of), stacked)
      self._producers[number] = operation

  def _bind(self, operation, values, stacked):
    """Runs a primitive on constants, mapped over the first axis of stacked ones."""

    def bind(*values):
      if operation.name == "scan":
        program = Program((operation,), (), (), operation.outputs, {}, {}, {})
        given = dict(zip(_program.operands(operation), values, strict=True))
        return _program.evaluate(program._replace(constants=given), (), ())[0]
      outputs = operation.primitive.bind(*values, **operation.params)
      return outputs if operation.primitive.multiple_results else [outputs]

    values = [jnp.asarray(value) for value in values]
    if not stacked:
      return bind(*values)
    axes = [0 if i in self.stacked else None for i in operation.inputs]
    return jax.vmap(bind, tuple(axes))(*values)

  def _enter(self, operation: Operation) -> None:
    """Passes constants into a loop's body: scanned ones stacked over all iterations."""
    body, p = operation.params["body"], operation.params
    first = p["num_consts"] + p["num_carry"]
    for k, (inner, outer) in enumerate(zip(body.inputs, operation.inputs, strict=True)):
      if inner in self.varying:
        continue
      if isinstance(outer, int) and outer in self.stacked:
        raise ValueError("compact cannot follow a loop inside a loop ('scan').")
      value = self._whole[outer] if isinstance(outer, int) else outer
      if k >= p["num_consts"] and k < first:
        raise ValueError("compact cannot follow a loop that carries parameters.")
      self._set(inner, value, self.paths(outer), stacked=k >= first)
      if k < first and isinstance(outer, int):
        self._outside[inner] = outer
    self._evaluate(body)


def _all_varying(program: Program) -> set[int]:
  """Returns the values that depend on inputs, including those in loop bodies."""
  found = _program.varying(program)
  for operation in program.operations:
    if operation.name == "scan" and not found.isdisjoint(operation.outputs):
      p, body = operation.params, operation.params["body"]
      flags = [isinstance(i, int) and i in found for i in operation.inputs]
      carry = slice(p["num_consts"], p["num_consts"] + p["num_carry"])
      # A carry can start as a constant and vary in later iterations, so all carries
      # count as varying.
      flags[carry] = [True] * p["num_carry"]
      found |= _nested(body, flags)
  return found


def _nested(body: Program, flags) -> set[int]:
  """Returns the varying values of a loop's body; loops inside it are not supported."""
  found = _program.varying(body, flags)
  if any(o.name == "scan" and not found.isdisjoint(o.outputs) for o in body.operations):
    raise ValueError("compact cannot follow a loop inside a loop ('scan').")
  return found


def _same_but_for_shapes(two: Program, three: Program) -> bool:
  """Returns whether two programs differ at most in the sizes of their values.

  Literals and constants are compared too: the size of the batch may be among them, as
  the divisor of a mean over the examples.
  """
  if len(two.operations) != len(three.operations):
    return False
  for a, b in zip(two.operations, three.operations, strict=True):
    if a.name != b.name or a.outputs != b.outputs or len(a.inputs) != len(b.inputs):
      return False
    for x, y in zip(a.inputs, b.inputs, strict=True):
      if isinstance(x, int) and isinstance(y, int):
        continue
      if not _equal(x, y):
        return False
    if a.name == "scan":
      if a.params["length"] != b.params["length"]:
        return False
      if not _same_but_for_shapes(a.params["body"], b.params["body"]):
        return False
  pairs = zip(two.constants.values(), three.constants.values(), strict=False)
  return len(two.constants) == len(three.constants) and all(
    np.shape(x) != np.shape(y) or _equal(x, y) for x, y in pairs
  )


def _equal(x: Any, y: Any) -> bool:
  dtypes = (getattr(v, "dtype", np.dtype(float)) for v in (x, y))
  if any(jnp.issubdtype(dtype, jax.dtypes.extended) for dtype in dtypes):
    return True  # keys have no values that NumPy could compare
  return np.array_equal(np.asarray(x), np.asarray(y))


def _batch_axes(two: Program, three: Program) -> dict[int, dict[int, int]]:
  """Finds the batch axes of every value: those whose size follows the batch size."""
  same = _same_but_for_shapes(two, three)
  found = {}
  for i, shape in two.shapes.items():
    other = three.shapes.get(i, ())
    same = same and len(other) == len(shape)
    pairs = list(zip(shape, other, strict=False))
    found[i] = {a: m // 2 for a, (m, n) in enumerate(pairs) if m != n}
    if not same or any(3 * m != 2 * n for m, n in pairs if m != n):
      raise ValueError(
        "apply_fn must do the same for every size of the batch, got other operations "
        "or sizes for 2 and 3 examples."
      )
  return found
