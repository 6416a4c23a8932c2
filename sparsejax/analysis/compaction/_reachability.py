"""Which elements depend on the input, and which the output depends on.

Forward, on flags for numbers: an element varies if something that varies reaches it
over weights that are not zero. Backward, by the transposed rules: an element is needed
if it reaches an output that varies with it.
"""

import numpy as np

from sparsejax.analysis.compaction._constants import Facts
from sparsejax.analysis.compaction._rules import ELEMENTWISE, REDUCTIONS, rules
from sparsejax.analysis.jaxpr._movement import MOVES
from sparsejax.analysis.jaxpr._program import Operation, Program


class Reach:
  """Flags of every element, at a batch of one.

  Attributes:
    facts: what the flags were worked out from.
    varies: `{value: bool array}`, of values that depend on the input.
    nonzero: the same, of elements that may be other than zero.
    needed: the same, of elements (of parameters too) that matter to the output.
  """

  def __init__(self, facts: Facts):
    self.facts = facts
    self.varies: dict[int, np.ndarray] = {}
    self.nonzero: dict[int, np.ndarray] = {}
    self.needed: dict[int, np.ndarray] = {}
    program = facts.program
    # Forward: the whole input varies.
    for i in program.inputs:
      self._see(i, np.ones(facts.shapes[i], bool), np.ones(facts.shapes[i], bool))
    self._forward(program)
    # Backward: the whole output is needed.
    for i in program.outputs:
      if isinstance(i, int):
        self._need(i, np.ones(facts.shapes[i], bool))
    self._backward(program)

  def alive(self, value: int) -> np.ndarray:
    """Elements that vary and are needed."""
    return self.varies[value] & self.needed.get(value, np.zeros((), bool))

  # Forward.

  def _see(self, value, varies, nonzero) -> bool:
    """Adds flags; says whether there was anything new."""
    shape = self.facts.shapes[value]
    varies, nonzero = (np.broadcast_to(f, shape) for f in (varies, nonzero))
    before = self.varies.get(value)
    if before is not None:
      varies, nonzero = varies | before, nonzero | self.nonzero[value]
    self.varies[value], self.nonzero[value] = varies, nonzero | varies
    return before is None or not np.array_equal(before, varies)

  def _v(self, value) -> np.ndarray:
    if self.facts.is_constant(value):
      return np.zeros(self.facts.shape(value), bool)
    return self.varies[value]

  def _nz(self, value) -> np.ndarray:
    if self.facts.is_constant(value):
      return self.facts.nonzero(value)
    return self.nonzero[value]

  def _forward(self, program: Program) -> None:
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
    body, p = operation.params["body"], operation.params
    consts, carries = p["num_consts"], p["num_carry"]
    first = consts + carries
    for k, (inner, outer) in enumerate(zip(body.inputs, operation.inputs, strict=True)):
      if inner in self.facts.varying:
        v, nz = self._v(outer), self._nz(outer)
        self._see(inner, *((v.any(0), nz.any(0)) if k >= first else (v, nz)))
    # What a round carries may vary more in the next one, until nothing is new.
    while True:
      self._forward(body)
      news = [
        self._see(inner, self._v(out), self._nz(out))
        for inner, out in zip(body.inputs[consts:first], body.outputs, strict=False)
      ]
      if not any(news):
        break
    for k, (out, inner) in enumerate(zip(operation.outputs, body.outputs, strict=True)):
      # A stacked output has one axis more, of rounds, in front.
      v, nz = self._v(inner), self._nz(inner)
      self._see(out, v, nz)
      if k < carries:
        self._see(out, self._v(operation.inputs[consts + k]), False)

  # Backward.

  def _need(self, value, flags) -> bool:
    before = self.needed.get(value)
    flags = np.broadcast_to(flags, self.facts.shape(value))
    self.needed[value] = flags if before is None else before | flags
    return before is None or not np.array_equal(before, self.needed[value])

  def _wanted(self, value) -> np.ndarray:
    """Where an output is needed and varies: a constant needs nothing."""
    need = self.needed.get(value, np.zeros((), bool))
    return np.broadcast_to(need & self._v(value), self.facts.shape(value))

  def _backward(self, program: Program) -> None:
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
    """Parameters that others are made of: needed where those are, as far as known."""
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
    body, p = operation.params["body"], operation.params
    consts, carries = p["num_consts"], p["num_carry"]
    first = consts + carries
    for k, (out, inner) in enumerate(zip(operation.outputs, body.outputs, strict=True)):
      if isinstance(inner, int) and out in self.needed:
        need = self._wanted(out)
        self._need(inner, need if k < carries else need.any(0))
    # What a round needs of the carry, the round before must give.
    while True:
      self._backward(body)
      news = [
        self._need(out, self.needed[inner])
        for inner, out in zip(body.inputs[consts:first], body.outputs, strict=False)
        if inner in self.needed and isinstance(out, int)
      ]
      if not any(news):
        break
    for inner, outer in zip(body.inputs, operation.inputs, strict=True):
      if isinstance(outer, int) and inner in self.needed:
        self._need(outer, self.needed[inner])
