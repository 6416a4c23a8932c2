"""Groups of elements that can only be removed together, and which of them are kept.

Every element of every value has a number, its unit. Operations join units: an addition
those of its operands, a convolution all positions of a channel. Elements that stay in
different groups can be removed independently. What is kept of a value is a box: the
product of one set of indices per axis. A product of two activations joins no units;
instead it requires pairs of axes to keep the same indices, as for the heads of queries,
keys, values and attention.
"""

import copy

import numpy as np

from sparsejax.analysis.compaction._constants import Facts
from sparsejax.analysis.compaction._reachability import Reach
from sparsejax.analysis.compaction._rules import (
  ELEMENTWISE,
  PRODUCTS,
  REDUCTIONS,
  WINDOWS,
  window_axes,
)
from sparsejax.analysis.compaction._union_find import Union
from sparsejax.analysis.jaxpr import _program
from sparsejax.analysis.jaxpr._movement import MOVES, RESHAPES, move
from sparsejax.analysis.jaxpr._program import Operation, Program

_FIXED = 0  # the unit of everything that must stay


class Units:
  """Units of a program's values, and the indices of each value that are kept.

  Attributes:
    of: `{value: int array}`, the unit of each element at a batch of one.
    contracts: outputs of the sums that run over units.
    flat: values that are the input up to reshapes and elementwise functions. Any of
      their elements can be removed, because they are computed on a flat list of pixels.
    boxed: the values in `flat` that another operation reads along their axes.
    kept: `{value: [indices of each axis]}`, from `settle`.
  """

  def __init__(self, facts: Facts, reach: Reach):
    self.facts, self.reach = facts, reach
    self.of: dict[int, np.ndarray] = {}
    self.contracts: set[int] = set()
    self.flat: set[int] = set()
    self.boxed: set[int] = set()
    self.kept: dict[int, list[np.ndarray]] = {}
    self._union = Union(_FIXED + 1)
    self._implied: list[tuple[np.ndarray, int]] = []
    # (value, axis, value, axis): pairs of axes that must keep the same indices.
    self._paired: list[tuple[int, int, int, int]] = []
    self._keep = np.zeros(0, bool)
    # Number the input's elements, walk the program to join units, and fix those of the
    # outputs: their shape must not change.
    program = facts.program
    for i in program.inputs:
      self.of[i] = self._union.new(facts.shapes[i])
      self.flat.add(i)
    self._walk(program)
    for i in program.outputs:
      if isinstance(i, int) and i in self.of:
        self._union.join(self.of[i], _FIXED)
    self._find_flat(program)

  def settle(self) -> None:
    """Finds the kept indices: live elements, and all that cannot be removed alone."""
    # Start with the groups of all live elements.
    if not len(self._keep):
      self._keep = np.zeros(len(self._union), bool)
      self._keep[_FIXED] = True
      for i, units in self.of.items():
        alive = np.broadcast_to(self.reach.alive(i), units.shape)
        self._keep[self._union.find(units[alive])] = True
    roots = {i: self.roots(i) for i in self.of}

    # Add what the kept groups imply, until nothing is added. The rules only ever add,
    # so their order does not matter.
    while True:
      before = np.count_nonzero(self._keep)
      # A kept copy keeps the unit that it was broadcast from.
      for units, implied in self._implied:
        if self._keep[self._union.find(units)].any():
          self._keep[self._union.find(np.asarray(implied))] = True
      # The kept part of a value must be a box along its axes, except where it is read
      # as a list of pixels.
      for i, units in roots.items():
        if i not in self.flat or i in self.boxed:
          whole = self._box(i, self._keep[units])
          self._keep[units[np.ix_(*whole)]] = True
      # Paired axes of a product of two activations keep the same indices.
      for left, a, right, b in self._paired:
        self._pair(roots, left, a, right, b)
        self._pair(roots, right, b, left, a)
      if np.count_nonzero(self._keep) == before:
        break

    # Read off the boxes. If all of the input is kept, no list of pixels is needed.
    for i, units in roots.items():
      self.kept[i] = self._box(i, self._keep[units])
    if all(self.mask(i).all() for i in self.facts.program.inputs):
      self.flat = set()

  def fork(self) -> "Units":
    """Returns a copy in which further units can be kept."""
    other = copy.copy(self)
    other._keep, other.kept = self._keep.copy(), {}
    other.flat, other.boxed = set(self.flat), set(self.boxed)
    return other

  def _pair(self, roots, source: int, a: int, target: int, b: int) -> None:
    """Keeps on axis b of target the indices that are kept on axis a of source."""
    units = roots[target]
    wanted = self._box(source, self._keep[roots[source]])[a]
    sets = self._box(target, self._keep[units])
    missing = np.setdiff1d(wanted, sets[b])
    if len(missing):
      # If nothing of the target is kept yet, keep the whole slice.
      sets = [k if len(k) else np.arange(units.shape[x]) for x, k in enumerate(sets)]
      sets[b] = missing
      self._keep[units[np.ix_(*sets)]] = True

  def mask(self, value: int) -> np.ndarray:
    """Returns which elements of a value are kept."""
    return self._keep[self.roots(value)]

  def roots(self, value: int) -> np.ndarray:
    """Returns the representative of each element's unit."""
    return self._union.find(self.of[value])

  def keep(self, value: int, flags: np.ndarray) -> None:
    """Marks the units of some elements as kept; call `settle` afterwards."""
    self._keep[self._union.find(self.of[value][flags])] = True

  def _box(self, value: int, mask: np.ndarray) -> list[np.ndarray]:
    """Returns the indices along each axis of the smallest box that contains a mask.

    Batch axes are kept whole.
    """
    sets = []
    for axis in range(mask.ndim):
      some = mask.any(tuple(a for a in range(mask.ndim) if a != axis))
      if axis in self.facts.batch[value] and some.any():
        some = np.ones_like(some)
      sets.append(np.flatnonzero(some))
    return sets

  # What each operation joins.

  def _walk(self, program: Program) -> None:
    """Assigns units to the outputs of every operation."""
    for operation in program.operations:
      if self.facts.varying.isdisjoint(operation.outputs):
        continue
      if operation.name == "scan":
        self._walk_scan(operation)
        continue
      outputs = self._outputs(operation)
      for i, units in zip(operation.outputs, outputs, strict=True):
        self.of[i] = units
        for axis, size in self.facts.batch[i].items():
          if size > 1:
            self._union.join_along(units, (axis,))

  def _outputs(self, operation: Operation) -> list[np.ndarray]:
    """Returns the units of an operation's outputs."""
    name, shapes = operation.name, [self.facts.shapes[i] for i in operation.outputs]
    if name == "broadcast_in_dim":
      return [self._broadcast(operation, shapes[0])]
    if name in MOVES:
      return self._move(operation, shapes)
    if name in ELEMENTWISE:
      return [self._elementwise(operation, shapes[0])]
    if name in REDUCTIONS:
      return [self._reduce(operation)]
    if name in WINDOWS:
      units = self.of[operation.inputs[0]]
      units = self._union.join_along(units, window_axes(operation))
      return [np.broadcast_to(units, shapes[0])]
    varying = self.facts.variables(operation)
    if name in PRODUCTS and len(varying) == 1:
      product = self._dot if name == "dot_general" else self._convolve
      return [product(operation, shapes[0])]
    if name == "dot_general":
      return [self._dot_both(operation, shapes[0])]
    for i in varying:
      self._union.join(self.of[i], _FIXED)
    return [np.full(shape, _FIXED) for shape in shapes]

  def _units(self, value, shape) -> np.ndarray:
    """Returns the units of an operand; a constant gets new ones, freely removable."""
    return self._union.new(shape) if self.facts.is_constant(value) else self.of[value]

  def _move(self, operation: Operation, shapes) -> list[np.ndarray]:
    """Moves units as the operation moves elements; padding gets new units."""
    if operation.name == "pad":
      units = self.of[operation.inputs[0]]
      fresh = self._union.new(shapes[0])
      return move("pad", operation.params, shapes, [units, fresh], fresh)
    arrays = [self._units(i, self.facts.shape(i)) for i in operation.inputs]
    return move(operation.name, operation.params, shapes, arrays)

  def _spread(self, units: np.ndarray, shape) -> np.ndarray:
    """Returns the units of a value that is broadcast along some axes."""
    roots = self._union.find(units)
    if units.size < np.prod(shape) and (roots == roots.flat[0]).all():
      # The source must be kept if any copy is, but single copies can be removed.
      fresh = self._union.new(shape)
      self._implied.append((fresh, int(roots.flat[0])))
      return fresh
    return np.broadcast_to(units, shape)

  def _broadcast(self, operation: Operation, shape) -> np.ndarray:
    units = self.of[operation.inputs[0]]
    wide = [1] * len(shape)
    dims = operation.params["broadcast_dimensions"]
    for axis, size in zip(dims, units.shape, strict=True):
      wide[axis] = size
    return self._spread(units.reshape(wide), shape)

  def _elementwise(self, operation: Operation, shape) -> np.ndarray:
    """Joins the units of all operands that vary."""
    found = None
    for i in operation.inputs:
      if self.facts.is_constant(i):
        continue
      units = self.of[i]
      if not units.shape:
        units = units.reshape((1,) * len(shape))
      units = self._spread(units, shape)
      if found is None:
        found = units
      else:
        self._union.join(found, units)
    assert found is not None
    return found

  def _reduce(self, operation: Operation) -> np.ndarray:
    """Joins units along the reduced axes; adds a sum over units to `contracts`."""
    axes = tuple(operation.params["axes"])
    units = self.of[operation.inputs[0]]
    free = [a for a in range(units.ndim) if a not in axes]
    roots = self._union.find(units)
    alike = all((roots == roots.take([0], a)).all() for a in free)
    if operation.name == "reduce_sum" and alike and roots.size > 1:
      self.contracts.add(operation.outputs[0])
      return np.full([units.shape[a] for a in free], _FIXED)
    units = self._union.join_along(units, axes)
    return units.reshape([units.shape[a] for a in free])

  def _dot(self, operation: Operation, shape) -> np.ndarray:
    """Returns new units for the kernel's output axes of a product with a constant."""
    (axes, batch) = operation.params["dimension_numbers"]
    side = int(self.facts.is_constant(operation.inputs[0]))
    value = operation.inputs[side]
    units = self.of[value]
    if batch[0]:
      self._union.join(units, _FIXED)
      return np.full(shape, _FIXED)
    free = [a for a in range(units.ndim) if a not in axes[side]]
    self._union.join_along(units, free)
    # The result has the left operand's free axes first, then the right's.
    mine = range(len(free)) if side == 0 else range(len(shape) - len(free), len(shape))
    return self._fresh(shape, [a for a in range(len(shape)) if a not in mine])

  def _dot_both(self, operation: Operation, shape) -> np.ndarray:
    """Pairs the axes of a product of two activations, such as queries and keys.

    Axes that the product identifies keep the same indices. The result has a new unit
    for each index of the axes along which an operand's units differ.
    """
    axes, batch = operation.params["dimension_numbers"]
    values, out = operation.inputs, operation.outputs[0]
    # Contracted axes keep the same indices in both operands.
    contracted = zip(*axes, strict=True)
    self._paired += [(values[0], a, values[1], b) for a, b in contracted]
    # Batch and free axes keep the same indices in the operand and in the result, whose
    # axes are the batch axes, then the left and the right operand's free axes.
    apart, place = [], len(batch[0])
    for side, value in enumerate(values):
      roots = self._union.find(self.of[value])
      free = [a for a in range(roots.ndim) if a not in (*axes[side], *batch[side])]
      rows = [*enumerate(batch[side]), *enumerate(free, place)]
      place += len(free)
      for target, a in rows:
        self._paired.append((value, a, out, target))
        if (roots != roots.take([0], a)).any():
          apart.append(target)
    return self._fresh(shape, apart)

  def _convolve(self, operation: Operation, shape) -> np.ndarray:
    """Joins all positions of each input channel; output features get new units."""
    p = operation.params
    if self.facts.is_constant(operation.inputs[0]) or p["batch_group_count"] > 1:
      for i in self.facts.variables(operation):
        self._union.join(self.of[i], _FIXED)
      return np.full(shape, _FIXED)
    # All positions of a channel share one unit, because the kernel slides over them.
    dims, groups = p["dimension_numbers"], p["feature_group_count"]
    units = self.of[operation.inputs[0]]
    channel, feature = dims.lhs_spec[1], dims.out_spec[1]
    others = [a for a in range(units.ndim) if a != channel]
    units = self._union.join_along(units, others)
    if groups == 1:
      return self._fresh(shape, [feature])
    # Grouped convolution: a group's channels are kept or removed together with its
    # features.
    by_group = units.reshape(groups, -1)
    self._union.join(by_group, by_group[:, :1])
    wide = [1] * len(shape)
    wide[feature] = shape[feature]
    each = np.repeat(by_group[:, 0], shape[feature] // groups).reshape(wide)
    return np.broadcast_to(each, shape)

  def _fresh(self, shape, axes) -> np.ndarray:
    """Returns a new unit per index of some axes, constant along the others."""
    wide = [size if a in axes else 1 for a, size in enumerate(shape)]
    return np.broadcast_to(self._union.new(wide), shape)

  def _walk_scan(self, operation: Operation) -> None:
    """Gives all iterations of a loop one set of units, because they share one shape."""
    body, p = operation.params["body"], operation.params
    consts, carries = p["num_consts"], p["num_carry"]
    first = consts + carries
    for k, (inner, outer) in enumerate(zip(body.inputs, operation.inputs, strict=True)):
      if inner not in self.facts.varying:
        continue
      shape = self.facts.shapes[inner]
      if self.facts.is_constant(outer):
        self.of[inner] = self._union.new(shape)
      else:
        units = self.of[outer]
        self.of[inner] = self._union.join_along(units, (0,))[0] if k >= first else units
    self._walk(body)
    for k, (out, inner) in enumerate(zip(operation.outputs, body.outputs, strict=True)):
      shape = self.facts.shapes[out]
      units = self._units(inner, shape if k < carries else shape[1:])
      if k < carries:
        self._union.join(units, self.of[body.inputs[consts + k]])
      self.of[out] = np.broadcast_to(units, shape)

  def _find_flat(self, program: Program) -> None:
    """Finds the values that are computed from the input's pixels one by one."""
    for operation in program.operations:
      varying = self.facts.variables(operation)
      simple = operation.name in ELEMENTWISE or operation.name in RESHAPES
      if len(varying) != 1 or varying[0] not in self.flat or not simple:
        continue
      out = operation.outputs[0]
      if len(operation.outputs) == 1 and self.of[out].size == self.of[varying[0]].size:
        self.flat.add(out)
    for operation in program.operations:
      if not self.flat.issuperset(operation.outputs):
        self.boxed.update(self.flat.intersection(_program.operands(operation)))
    self.boxed.update(
      i for i in program.outputs if isinstance(i, int) and i in self.flat
    )
