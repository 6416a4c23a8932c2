"""Unrolling of loops over stacked layers, so that each layer is a separate product."""

from typing import Any

import numpy as np
from jax.extend.core import primitives

from sparsejax.analysis.jaxpr import Operation


def unrolled(operation: Operation, shapes: dict, dtypes: dict) -> list[Operation]:
  """Unrolls a `scan` into the operations of its iterations, one after another.

  Args:
    operation: the loop, of a `sparsejax.analysis.jaxpr.Program`.
    shapes: the shape of each value by its number. New values are added.
    dtypes: the dtype of each value by its number. New values are added.

  Returns:
    Operations that compute the loop's outputs, in program order.
  """
  values_of = _Values(shapes, dtypes)
  body, p = operation.params["body"], operation.params
  consts, carries = p["num_consts"], p["num_carry"]
  carry = list(operation.inputs[consts : consts + carries])
  stacked = operation.inputs[consts + carries :]
  slices: list[list] = [[] for _ in body.outputs[carries:]]
  made: list[Operation] = []
  # Per iteration: slice the stacked operands, copy the body with new numbers, and
  # collect its outputs.
  rounds = range(p["length"])
  for i in reversed(rounds) if p["reverse"] else rounds:
    values = [*operation.inputs[:consts], *carry]
    values += [values_of.slice(x, i, made) for x in stacked]
    numbers = dict(zip(body.inputs, values, strict=True))
    made += [values_of.renumbered(inner, numbers) for inner in body.operations]
    outputs = [_read(numbers, o) for o in body.outputs]
    carry = outputs[:carries]
    for rows, value in zip(slices, outputs[carries:], strict=True):
      rows.append(value)
  # Copy the last carry to the loop's outputs, and stack the other outputs.
  for out, value in zip(operation.outputs[:carries], carry, strict=True):
    made.append(_reshape(value, out, shapes[out]))
  for out, rows in zip(operation.outputs[carries:], slices, strict=True):
    values_of.stack(rows[::-1] if p["reverse"] else rows, out, made)
  return made


class _Values:
  """The numbered values of a program, to which new ones can be added."""

  def __init__(self, shapes: dict, dtypes: dict):
    self.shapes, self.dtypes = shapes, dtypes

  def new(self, shape: tuple[int, ...], dtype: Any) -> int:
    number = len(self.shapes)
    self.shapes[number], self.dtypes[number] = shape, dtype
    return number

  def like(self, value: int) -> int:
    return self.new(self.shapes[value], self.dtypes[value])

  def slice(self, value, i: int, made: list[Operation]):
    """Adds operations that take row i of a stacked operand; returns their result."""
    if not isinstance(value, int):
      return np.asarray(value)[i]
    shape, dtype = self.shapes[value], self.dtypes[value]
    row = self.new((1, *shape[1:]), dtype)
    out = self.new(shape[1:], dtype)
    limits = {
      "start_indices": (i,) + (0,) * (len(shape) - 1),
      "limit_indices": (i + 1, *shape[1:]),
      "strides": None,
    }
    made.append(Operation(primitives.slice_p, limits, (value,), (row,)))
    made.append(Operation(primitives.squeeze_p, {"dimensions": (0,)}, (row,), (out,)))
    return out

  def stack(self, rows: list, out: int, made: list[Operation]) -> None:
    """Adds operations that stack rows to the value `out`."""
    shape = (1, *self.shapes[out][1:])
    wide = []
    for row in rows:
      number = self.new(shape, self.dtypes[out])
      made.append(_reshape(row, number, shape))
      wide.append(number)
    p = {"dimension": 0}
    made.append(Operation(primitives.concatenate_p, p, tuple(wide), (out,)))

  def renumbered(self, operation: Operation, numbers: dict) -> Operation:
    """Copies an operation of a loop's body, with new numbers for its outputs."""
    inputs = tuple(_read(numbers, i) for i in operation.inputs)
    for out in operation.outputs:
      numbers[out] = self.like(out)
    p = operation.params
    if operation.name == "scan":
      body = p["body"]
      inner = {i: self.like(i) for i in body.inputs}
      made = tuple(self.renumbered(o, inner) for o in body.operations)
      body = body._replace(
        operations=made,
        inputs=tuple(inner[i] for i in body.inputs),
        outputs=tuple(_read(inner, o) for o in body.outputs),
      )
      p = {**p, "body": body}
    return Operation(
      operation.primitive, p, inputs, tuple(numbers[o] for o in operation.outputs)
    )


def _read(numbers: dict, value):
  return numbers.get(value, value) if isinstance(value, int) else value


def _reshape(value, out: int, shape: tuple[int, ...]) -> Operation:
  p = {"new_sizes": shape, "dimensions": None, "sharding": None}
  return Operation(primitives.reshape_p, p, (value,), (out,))
