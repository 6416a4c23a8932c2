"""Finding the layers of any function in its jaxpr: which products use which weights.

The program is traced and flattened as for `sparsejax.analysis.compact`. Every selected
parameter is then followed forwards, through operations that only move or cast its
elements, to the products that it enters. A `scan` over stacked layers is unrolled, so
that each layer becomes a separate product. A `scan` that uses one kernel in every
iteration, as a recurrent network does, stays a loop.
"""

import hashlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from sparsejax.analysis.jaxpr import (
  MOVES,
  Operation,
  Program,
  evaluate,
  move,
  operands,
  trace,
  varying,
)
from sparsejax.core import Where, path_string, selected
from sparsejax.post_training._layers import Layer, Network, Use, View, matrix_view
from sparsejax.post_training._unroll import unrolled

PyTree = Any
_PRODUCTS = ("dot_general", "conv_general_dilated")
_REFUSED = ("ragged_dot", "ragged_dot_general", "scaled_dot")
# Picks of elements by an index that the inputs may determine.
_PICKS = ("gather", "dynamic_slice")
# Moves that mix arrays.
_UNREAD = ("concatenate", "optimization_barrier", "pad", "stack", "tile")


class _MustUnroll(Exception):
  """Raised when a loop selects its layer by a counter, so that it must be unrolled."""


def find_layers(
  apply_fn: Callable[[PyTree, Any], Any],
  params: PyTree,
  inputs: Any,
  where: Where = None,
  caller: str = "post_training",
) -> Network:
  """Traces a function and finds the products that its parameters enter.

  Args:
    apply_fn: `(params, inputs) -> outputs`.
    params: pytree of arrays, or of their abstract values.
    inputs: one batch, or its abstract values.
    where: selects the leaves; see `sj.sparsify`.
    caller: the public function's name, for error messages.

  Returns:
    A `Network`.

  Raises:
    ValueError: no selected parameter enters a product, or one cannot be followed to
      it.
  """
  chosen = selected(params, where)
  program, _ = trace(apply_fn, params, inputs)
  flat = jax.tree_util.tree_leaves_with_path(params)
  paths = [path_string(path) for path, _ in flat]
  finder = _Finder(program, chosen, paths, caller, where is not None)
  operations = finder.follow(list(program.operations))
  program = program._replace(
    operations=tuple(operations), constants=finder.constants, inputs=program.inputs
  )
  layers = finder.layers()
  if not layers:
    picked = [path for path, flag in zip(paths, chosen, strict=True) if flag]
    raise ValueError(
      "apply_fn must multiply its inputs by at least one selected parameter, got none "
      f"in {caller}: where selects {picked}."
    )
  return Network(program, layers, frozenset(varying(program)))


class _Finder:
  """Follows parameters through a program.

  Values have numbers. `views` maps those whose elements are moved from one selected
  parameter to a `View`; `depends` maps all that depend on selected parameters, and not
  on the inputs, to these parameters.
  """

  def __init__(self, program: Program, chosen, paths, caller, explicit: bool):
    self.program, self.paths, self.caller = program, paths, caller
    self.explicit = explicit  # whether the user chose the parameters
    self.shapes, self.dtypes = program.shapes, program.dtypes
    self.constants = dict(program.constants)
    self.views: dict[int, View] = {}
    self.depends: dict[int, frozenset[int]] = {}  # value -> selected leaves in it
    self.last: dict[int, str] = {}  # value -> the operation that ended its view
    self.met: dict[int, str] = {}  # leaf -> the operation, no product, that met inputs
    self.fixed: dict[int, Operation | None] = dict.fromkeys(self.constants)
    self.varies = set(program.inputs)
    self.found: list[tuple[View, Use, tuple]] = []
    for leaf, (number, flag) in enumerate(zip(program.params, chosen, strict=True)):
      if flag:
        self.views[number] = View(leaf, self.shapes[number])
        self.depends[number] = frozenset([leaf])

  def follow(self, operations: list[Operation]) -> list[Operation]:
    """Visits all operations and returns them, with loops over layers unrolled."""
    # `pending` is a stack; an unrolled loop is replaced by its operations there.
    done, pending = [], list(reversed(operations))
    while pending:
      operation = pending.pop()
      if operation.name == "scan":
        if self._stacked(operation):
          pending.extend(reversed(self._unrolled(operation)))
          continue
        found = list(self.found)
        try:
          self._loop(operation, len(done))
        except _MustUnroll:
          self.found = found
          pending.extend(reversed(self._unrolled(operation)))
          continue
      else:
        self._visit(operation, len(done), inside=False)
      done.append(operation)
    return done

  def _visit(self, operation: Operation, at: int, inside: bool) -> None:
    """Records what the outputs of one operation are."""
    # Outputs vary if an operand depends on the inputs; they are fixed if all operands
    # are constants.
    numbers = list(operands(operation))
    if any(i in self.varies for i in numbers):
      self.varies.update(operation.outputs)
    elif all(i in self.fixed for i in numbers):
      self.fixed.update(dict.fromkeys(operation.outputs, operation))
    viewed = [i for i in numbers if i in self.views]
    if operation.name in _PRODUCTS:
      self._product(operation, at)
      return
    # Operations without selected parameters need no more. A barrier passes its operands
    # on; operations with a body cannot be followed.
    leaves_in = self._parameters_in(numbers)
    if not leaves_in:
      return
    if operation.name == "optimization_barrier":
      for i, out in zip(operation.inputs, operation.outputs, strict=True):
        self._rename(i, out)
      return
    if operation.name in _REFUSED or _has_body(operation):
      self._refuse(next(i for i in numbers if i in self.depends), operation.name)
    if len(viewed) == 1 and self._moved(operation, viewed[0], inside):
      return
    # Any other operation ends the view, which is an error only if the result enters a
    # product, or if a parameter that the user chose has none; remember the operation
    # for the message. What the inputs pick from a parameter still consists of weights.
    moves = operation.name in MOVES and operation.name not in _UNREAD
    if any(i in self.varies for i in numbers):
      for leaf in leaves_in:
        self.met.setdefault(leaf, operation.name)
    if not any(i in self.varies for i in numbers) or (
      operation.name in _PICKS or moves
    ):
      for out in operation.outputs:
        self.depends[out] = leaves_in
        self.last[out] = next(
          (self.last[i] for i in numbers if i in self.last), operation.name
        )

  def _moved(self, operation: Operation, source: int, inside: bool) -> bool:
    """Records views of the outputs and returns True if elements are only moved."""
    name, p, view = operation.name, operation.params, self.views[source]
    shapes = [self.shapes[out] for out in operation.outputs]
    first = isinstance(operation.inputs[0], int) and operation.inputs[0] == source
    steps: list[Callable] = [_same]
    factors = view.factors
    if name in ("mul", "div") and (first or name == "mul"):
      # A scalar factor, shared by all weights, does not change masks or compensation,
      # unless it depends on the weights, as a norm does.
      factor = operation.inputs[1 if first else 0]
      varies = isinstance(factor, int) and (
        factor in self.varies or factor in self.depends
      )
      if varies or math.prod(self._shape(factor)) != 1:
        return False
      value = (
        factor if isinstance(factor, int) else ("value", np.asarray(factor).item())
      )
      factors = (*factors, (name, value))
    elif name == "dynamic_slice" and first:
      starts = [self._constant(i, inside) for i in operation.inputs[1:]]
      if any(s is None for s in starts):
        return False
      index = _slices(starts, view.shape, p["slice_sizes"])
      steps = [lambda a: a[index]]
    elif name == "convert_element_type" and not jnp.issubdtype(
      p["new_dtype"], jnp.floating
    ):
      return False
    elif name in MOVES and name not in _UNREAD:
      if math.prod(view.shape) < sum(map(math.prod, shapes)):
        return False  # a broadcast repeats weights
      steps = [lambda a, k=k: move(name, p, shapes, [a])[k] for k in range(len(shapes))]
    elif name != "sharding_constraint":
      return False
    for out, shape, step in zip(operation.outputs, shapes, steps, strict=True):
      self._see(out, View(view.leaf, shape, view, step, factors))
    return True

  def _rename(self, number: Any, other: int) -> None:
    """Records that `other` is the same value as `number`, unless that is a literal."""
    if not isinstance(number, int):
      return
    if number in self.views:
      self.views[other] = self.views[number]
    if number in self.depends:
      self.depends[other] = self.depends[number]
    if number in self.last:
      self.last[other] = self.last[number]

  def _see(self, number: int, view: View) -> None:
    self.views[number] = view
    self.depends[number] = frozenset([view.leaf])

  def _product(self, operation: Operation, at: int) -> None:
    """Records a product in which one operand is a view of a parameter."""
    left, right = operation.inputs
    sides = [s for s in (0, 1) if operation.inputs[s] in self.views]
    varies = any(i in self.varies for i in operands(operation))
    if len(sides) == 1:
      side = sides[0]
      kernel = operation.inputs[side]
      if operation.name == "conv_general_dilated" and side == 0:
        self._refuse(kernel, "conv_general_dilated, as the image")
      if operation.params.get("batch_group_count", 1) > 1:
        self._refuse(kernel, "conv_general_dilated in batch groups")
      view = self.views[kernel]
      rows, shape = matrix_view(operation, side, view.shape)
      matrix = View(view.leaf, (), view, rows, view.factors)
      self.found.append((matrix, Use(operation.outputs[0], side, at), shape))
      if varies:
        return
    leaves_in = self._parameters_in(i for i in (left, right) if isinstance(i, int))
    if not leaves_in:
      return
    if varies:
      lost = next(
        i for i in (left, right) if isinstance(i, int) and self.depends.get(i)
      )
      self._refuse(lost, self.last.get(lost, operation.name))
    # A product of parameters alone: its result may be used as a kernel, but cannot be
    # followed further.
    for out in operation.outputs:
      self.depends[out] = leaves_in
      self.last[out] = operation.name

  def _parameters_in(self, numbers: Iterable[int]) -> frozenset[int]:
    return frozenset(leaf for i in numbers for leaf in self.depends.get(i, ()))

  def _refuse(self, number: int, name: str):
    leaf = min(self.depends[number])
    raise ValueError(
      "apply_fn must only move, cast or multiply a selected parameter, got "
      f"{self.paths[leaf]!r}, which {self.caller} cannot follow through {name}; leave "
      "it out with `where`."
    )

  def _shape(self, value) -> tuple[int, ...]:
    return self.shapes[value] if isinstance(value, int) else np.shape(value)

  def _constant(self, value, inside: bool):
    """Evaluates a scalar; returns None if it depends on parameters or inputs."""
    if not isinstance(value, int):
      return np.asarray(value)
    if value not in self.fixed:
      if inside and value not in self.program.params:
        raise _MustUnroll
      return None
    # Collect the operations that compute it, in program order, and evaluate them.
    operations, wanted, seen = [], [value], set()
    while wanted:
      operation = self.fixed[number] if (number := wanted.pop()) in self.fixed else None
      if operation is not None and operation.outputs not in seen:
        seen.add(operation.outputs)
        operations.append(operation)
        wanted.extend(operands(operation))
    order = {out: i for i, out in enumerate(self.fixed)}
    operations.sort(key=lambda operation: order[operation.outputs[0]])
    used = {i for operation in operations for i in operands(operation)} | {value}
    constants = {i: c for i, c in self.constants.items() if i in used}
    program = self.program._replace(
      operations=tuple(operations),
      params=(),
      inputs=(),
      outputs=(value,),
      constants=constants,
    )
    return np.asarray(evaluate(program, (), ())[0][0])

  def _stacked(self, operation: Operation) -> bool:
    """Returns whether a loop takes a slice of a selected parameter per iteration."""
    p = operation.params
    first = p["num_consts"] + p["num_carry"]
    return any(
      isinstance(i, int) and i in self.depends for i in operation.inputs[first:]
    )

  def _loop(self, operation: Operation, at: int) -> None:
    """Visits the body of a loop that stays a loop."""
    # Connect the body's inputs to the loop's operands. Operands that are constant over
    # all iterations keep their views; parameters that change cannot be followed.
    body, p = operation.params["body"], operation.params
    consts, carries = p["num_consts"], p["num_carry"]
    self.constants.update(body.constants)
    self.fixed.update(dict.fromkeys(body.constants))
    for k, (inner, outer) in enumerate(zip(body.inputs, operation.inputs, strict=True)):
      carried = consts <= k < consts + carries
      same = carried and body.outputs[k - consts] == inner
      if k >= consts and not same:
        if isinstance(outer, int) and outer in self.views:
          self._refuse(outer, "the carry of a scan")
        if not isinstance(outer, int) or outer not in self.depends:
          self.varies.add(inner)  # it changes between iterations
        continue
      if not isinstance(outer, int):
        self.fixed[inner] = None
        self.constants[inner] = outer
        continue
      self._rename(outer, inner)
      if outer in self.varies:
        self.varies.add(inner)
    # Visit the body. A nested loop over stacked layers makes this loop unroll too.
    for inner in body.operations:
      if inner.name == "scan":
        if self._stacked(inner):
          raise _MustUnroll
        self._loop(inner, at)
      else:
        self._visit(inner, at, inside=True)
    if any(i in self.varies for i in operands(operation)) or any(
      o in self.varies for o in body.outputs if isinstance(o, int)
    ):
      self.varies.update(operation.outputs)

  def _unrolled(self, operation: Operation) -> list[Operation]:
    """Unrolls a loop into the operations of its iterations, one after another."""
    body = operation.params["body"]
    self.constants.update(body.constants)
    self.fixed.update(dict.fromkeys(body.constants))
    return unrolled(operation, self.shapes, self.dtypes)

  def layers(self) -> tuple[Layer, ...]:
    """Returns the layers that were found, with all uses of the same weights in one.

    Raises:
      ValueError: two layers share some weights, but not all; or a parameter that the
        user chose meets the inputs, but in no product.
    """
    used = {view.leaf for view, *_ in self.found}
    for leaf, name in self.met.items():
      if self.explicit and leaf not in used:
        raise ValueError(
          "apply_fn must use a selected parameter in a product, got "
          f"{self.paths[leaf]!r}, which meets the inputs in {name}, where "
          f"{self.caller} cannot follow it; leave it out with `where`."
        )
    # Uses of one parameter at the same positions are the same layer.
    made: dict[tuple[int, str], dict] = {}
    taken: dict[int, np.ndarray] = {}
    for view, use, shape in self.found:
      positions = view.positions()
      digest = hashlib.sha1(positions.tobytes()).hexdigest()
      key = (view.leaf, digest + str(positions.shape))
      if key in made:
        if made[key]["view"].factors != view.factors:
          raise ValueError(
            "apply_fn must multiply a selected parameter by the same number in all its "
            f"products, got {self.paths[view.leaf]!r}, which enters two products with "
            "different factors; leave it out with `where`."
          )
        made[key]["uses"] += (use,)
        continue
      # Check that no weight belongs to an earlier layer.
      root = view
      while root.parent is not None:
        root = root.parent
      covered = taken.setdefault(view.leaf, np.zeros(math.prod(root.shape), bool))
      if covered[positions].any():
        raise ValueError(
          "apply_fn must use each weight of a selected parameter in products over the "
          f"same inputs, got {self.paths[view.leaf]!r}, which enters two products that "
          "share weights but not inputs; leave it out with `where`."
        )
      covered[positions] = True
      made[key] = {
        "first": int(positions.min()),
        "uses": (use,),
        "shape": shape,
        "sizes": positions.shape,
        "view": view,
      }
    return _named(made, self.paths)


def _has_body(operation: Operation) -> bool:
  """Returns whether an operation has a body, such as `while` and `cond`."""
  groups = (p if isinstance(p, tuple) else (p,) for p in operation.params.values())
  values = [value for group in groups for value in group]
  return any(isinstance(v, (core.Jaxpr, core.ClosedJaxpr)) for v in values)


def _same(a: np.ndarray) -> np.ndarray:
  return a


def _slices(starts, shape, sizes) -> tuple[slice, ...]:
  """Returns the slices of a `dynamic_slice`, which clamps starts to the bounds."""
  starts = [
    min(max(int(start), 0), whole - size)
    for start, whole, size in zip(starts, shape, sizes, strict=True)
  ]
  return tuple(slice(s, s + n) for s, n in zip(starts, sizes, strict=True))


def _named(made: dict, paths: list[str]) -> tuple[Layer, ...]:
  """Creates the layers with their names, in the order of their first use."""
  starts: dict[int, list[int]] = {}
  for (leaf, _), entry in made.items():
    starts.setdefault(leaf, []).append(entry["first"])
  layers = []
  for (leaf, _), entry in made.items():
    several = sorted(starts[leaf])
    name = paths[leaf]
    if len(several) > 1:
      name += f"[{several.index(entry['first'])}]"
    groups, outputs, inputs = entry["sizes"]
    layers.append(
      Layer(
        name,
        leaf,
        entry["shape"],
        groups,
        outputs,
        inputs,
        entry["uses"],
        entry["view"],
      )
    )
  return tuple(sorted(layers, key=lambda layer: layer.uses[0].at))
