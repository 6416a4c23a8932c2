"""Forward and backward reachability of each element of each value.

Forward: an element varies if an element that varies reaches it over weights that are
not zero. Backward, by the transposed rules: an element is needed if it reaches an
output element that varies with it.
"""

import numpy as np

from sparsejax.analysis.compaction._constants import Facts
from sparsejax.analysis.compaction._rules import ELEMENTWISE, REDUCTIONS, rules
from sparsejax.analysis.jaxpr._movement import MOVES
from sparsejax.analysis.jaxpr._program import Operation, Program


class Reach:
  """Reachability flags of every element, at a batch of one.

  Attributes:
    facts: the constants and batch axes that the flags are computed from.
    varies: `{value: bool array}`, for values that depend on the input.
    nonzero: the same keys; which elements may be other than zero.
    needed: bool arrays of the elements (of parameters too) that the output depends on.
  """

  def __init__(self, facts: Facts):
    self.facts = facts
    self.varies: dict[int, np.ndarray] = {}
    self.nonzero: dict[int, np.ndarray] = {}
    self.needed: dict[int, np.ndarray] = {}
    program = facts.program
    # Forward pass: all elements of the input vary.
    for i in program.inputs:
      self._see(i, np.ones(facts.shapes[i], bool), np.ones(facts.shapes[i], bool))
    self._forward(program)
    # Backward pass: all elements of the output are needed.
    for i in program.outputs:
      if isinstance(i, int):
        self._need(i, np.ones(facts.shapes[i], bool))
    self._backward(program)

  def alive(self, value: int) -> np.ndarray:
    """Returns the elements that vary and are needed."""
    return self.varies[value] & self.needed.get(value, np.zeros((), bool))

  # Forward.

  # Forward.
  def _see(self, value, varies, nonzero) -> bool:
    """Merges flags into a value; returns whether any element newly varies."""
    shape = self.facts.shapes[value]
    varies, nonzero = (np.broadcast_to(f, shape) for f in (varies, nonzero))
    before = self.varies.get(value)
    if before is not None:
      varies, nonzero = varies | before, nonzero | self.nonzero[value]
    self.varies[value], self.nonzero[value] = varies, nonzero | varies
    return before is None or not np.array_equal(before, varies)

  def _v(self, value) -> np.ndarray:
    """Returns which elements of a value vary; none of a constant."""
    if self.facts.is_constant(value):
      return np.zeros(self.facts.shape(value), bool)
    return self.varies[value]

  def _nz(self, value) -> np.ndarray:
    """Returns which elements of a value may be other than zero."""
    if self.facts.is_constant(value):
      return self.facts.nonzero(value)
    return self.nonzero[value]

  def _forward(self, program: Program) -> None:
    """Applies the forward rules in the order of the program."""
    for operation in program.operations:
      if self.facts.varying.isdisjoint(operation.outputs):
        continue
      if operation.name == "scan":
        self._forward_scan(operation)
        continue
      rule = rules(operation, self.facts)[0]
      flags = [self._v(i) for i in operation.inputs]
      live = [self._nz(i) for i in operation.inputs]
      shapes = [self.facts.shapes[i] for i in operation.outputs]
      varies, nonzero = rule(operation, flags, live, shapes)
      for i, v, nz in zip(operation.outputs, varies, nonzero, strict=True):
        self._see(i, v, nz)

  def _forward_scan(self, operation: Operation) -> None:
    """Applies the forward rules to a loop until the flags of its carry are stable."""
    body, p = operation.params["body"], operation.params
    consts, carries = p["num_consts"], p["num_carry"]
    first = consts + carries
    # Flags enter the body. Of a scanned operand, an element varies if it does in any
    # iteration.
    for k, (inner, outer) in enumerate(zip(body.inputs, operation.inputs, strict=True)):
      if inner in self.facts.varying:
        v, nz = self._v(outer), self._nz(outer)
        self._see(inner, *((v.any(0), nz.any(0)) if k >= first else (v, nz)))
    # The carry can vary more in the next iteration, so iterate to the fixed point.
    while True:
      self._forward(body)
      news = [
        self._see(inner, self._v(out), self._nz(out))
        for inner, out in zip(body.inputs[consts:first], body.outputs, strict=False)
      ]
      if not any(news):
        break
    # Flags leave the body. A stacked output has one more leading axis, over iterations;
    # the final carry can also be the initial one, unchanged.
    for k, (out, inner) in enumerate(zip(operation.outputs, body.outputs, strict=True)):
      # A stacked output has one axis more, of rounds, in front.
      v, nz = self._v(inner), self._nz(inner)
      self._see(out, v, nz)
      if k < carries:
        self._see(out, self._v(operation.inputs[consts + k]), False)

  # Backward.

  def _need(self, value, flags) -> bool:
    """Merges flags into what is needed of a value; returns whether any is new."""
    before = self.needed.get(value)
    flags = np.broadcast_to(flags, self.facts.shape(value))
    self.needed[value] = flags if before is None else before | flags
    return before is None or not np.array_equal(before, self.needed[value])

  def _wanted(self, value) -> np.ndarray:
    """Returns where an output is needed and varies; a constant output needs nothing."""
    need = self.needed.get(value, np.zeros((), bool))
    return np.broadcast_to(need & self._v(value), self.facts.shape(value))

  def _backward(self, program: Program) -> None:
    """Applies the backward rules in the reverse order of the program."""
    for operation in reversed(program.operations):
      if self.facts.varying.isdisjoint(operation.outputs):
        self._backward_constant(operation)
        continue
      if operation.name == "scan":
        self._backward_scan(operation)
        continue
      rule = rules(operation, self.facts)[1]
      wanted = [self._wanted(i) for i in operation.outputs]
      live = [self._nz(i) for i in operation.inputs]
      flags = [self._v(i) for i in operation.inputs]
      shapes = [self.facts.shape(i) for i in operation.inputs]
      needs = rule(operation, wanted, flags, live, shapes)
      for i, need in zip(operation.inputs, needs, strict=True):
        if isinstance(i, int):
          self._need(i, need)

  def _backward_constant(self, operation: Operation) -> None:
    """Propagates need to parameters that other constants are computed from.

    Moves, elementwise operations and reductions propagate it element by element; all
    elements of other operations' operands count as needed.
    """
    wanted = [self.needed.get(i) for i in operation.outputs]
    if all(w is None for w in wanted):
      return
    wanted = [
      np.zeros(self.facts.shape(i), bool) if w is None else w
      for i, w in zip(operation.outputs, wanted, strict=True)
    ]
    shapes = [self.facts.shape(i) for i in operation.inputs]
    live = [np.ones(shape, bool) for shape in shapes]
    name = operation.name
    if name in MOVES or name in ELEMENTWISE or name in REDUCTIONS:
      rule = rules(operation, self.facts)[1]
      needs = rule(operation, wanted, live, live, shapes)
    else:
      needs = live
    for i, need in zip(operation.inputs, needs, strict=True):
      if isinstance(i, int):
        self._need(i, need)

  def _backward_scan(self, operation: Operation) -> None:
    """Applies the backward rules to a loop until the needed carry is unchanged."""
    body, p = operation.params["body"], operation.params
    consts, carries = p["num_consts"], p["num_carry"]
    first = consts + carries
    # Need enters the body from the loop's outputs; of a stacked output, an element is
    # needed if it is in any iteration.
    for k, (out, inner) in enumerate(zip(operation.outputs, body.outputs, strict=True)):
      if isinstance(inner, int) and out in self.needed:
        need = self._wanted(out)
        self._need(inner, need if k < carries else need.any(0))
    # What one iteration needs of the carry, the previous one must produce: iterate to
    # the fixed point.
    while True:
      self._backward(body)
      news = [
        self._need(out, self.needed[inner])
        for inner, out in zip(body.inputs[consts:first], body.outputs, strict=False)
        if inner in self.needed and isinstance(out, int)
      ]
      if not any(news):
        break
    # Need leaves the body to the loop's operands.
    for inner, outer in zip(body.inputs, operation.inputs, strict=True):
      if isinstance(outer, int) and inner in self.needed:
        self._need(outer, self.needed[inner])
