"""Builds the smaller program: each operation on what is kept of its operands."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax.analysis import _program
from sparsejax.analysis._facts import Facts
from sparsejax.analysis._movement import MOVES
from sparsejax.analysis._program import Operation, Program
from sparsejax.analysis._reach import ELEMENTWISE, PRODUCTS
from sparsejax.analysis._units import Units

Step = Callable[[dict, dict, int], None]  # of values, parameters, size of the batch
_RESHAPES = ("expand_dims", "reshape", "squeeze")


class Replay:
  """The smaller program.

  Attributes:
    params: `{name: array}`, of what is kept of the parameters.
    kernels: `{name: shape before}` of those that are multiplied.
    pixels: places in the flattened input that are kept, or None for all.
  """

  def __init__(self, facts: Facts, units: Units, constants: dict[int, np.ndarray]):
    self.facts, self.units, self.constants = facts, units, constants
    self.params: dict[str, np.ndarray] = {}
    self.kernels: dict[str, tuple[int, ...]] = {}
    self._names: dict[tuple, str] = {}
    self._pending: dict[int, np.ndarray] = {}
    program = facts.program
    [self.input] = program.inputs
    self.pixels = None
    if units.flat:
      self.pixels = np.flatnonzero(units.mask(self.input).ravel())
    self._uses = _uses(program)
    self.steps = self._steps(program)
    self.outputs = [self._output(i) for i in program.outputs]

  def __call__(self, params: dict[str, jax.Array], inputs: jax.Array) -> list:
    """Runs it on inputs, or on the pixels of them that are kept."""
    n = inputs.shape[0]
    env = {self.input: inputs}
    for step in self.steps:
      step(env, params, n)
    return [output(env, params, n) for output in self.outputs]

  # Reading.

  def _shape(self, value: int, n: int) -> tuple[int, ...]:
    batch = self.facts.batch[value]
    sizes = [len(kept) for kept in self.units.kept[value]]
    return tuple(n * s if a in batch else s for a, s in enumerate(sizes))

  def _empty(self, value: int) -> bool:
    flat = value in self.units.flat and value not in self.units.boxed
    return not flat and any(not len(kept) for kept in self.units.kept[value])

  def _read(self, value: int) -> Callable:
    """A value along its axes."""
    if value in self.units.flat:
      return lambda env, params, n: env[value].reshape(self._shape(value, n))
    return lambda env, params, n: env[value]

  def _constant(
    self, value: Any, sets, like: int | None = None, extra=None
  ) -> Callable:
    """A constant, restricted to index sets where it is not repeated along the axis.

    Args:
      value: a literal or the number of a constant.
      sets: indices of each axis.
      like: the value whose axes these are; along an axis on which its units are alike
        the constant is stored once if it does not change there.
      extra: added to it.

    Returns:
      `(env, params, n) -> array`.
    """
    array = self.facts.constants[value] if isinstance(value, int) else value
    stacked = isinstance(value, int) and value in self.facts.stacked
    made_of = self.facts.made_of[value] if isinstance(value, int) else ()
    array = self._restrict(np.asarray(array), sets, stacked, like)
    if extra is not None:
      wide = array.ndim - stacked == 0
      array = (array.reshape(array.shape + (1,) * len(sets)) if wide else array) + extra
      made_of = made_of or ("constant",)
    stacked = stacked or (extra is not None and extra.ndim > len(sets))
    if not made_of and not stacked:
      return lambda env, params, n: array
    key = (value, tuple(map(bytes, sets)), extra is None or like)
    return self._param(made_of[-1] if made_of else "constant", array, key, stacked)

  def _restrict(self, array, sets, stacked, like) -> np.ndarray:
    if array.ndim - stacked == 0:
      return array
    units = None if like is None else self.units.find(self.units.of[like])
    for axis, kept in enumerate(sets):
      a = axis + stacked
      if array.shape[a] > 1:
        array = array.take(kept, a)
        alike = (
          units is not None and units.any() and (units == units.take([0], axis)).all()
        )
        first = array.take([0], a) if array.shape[a] else array
        if alike and np.array_equal(np.broadcast_to(first, array.shape), array):
          array = first
    return array

  def _param(self, path: str, array: np.ndarray, key: tuple, stacked: bool) -> Callable:
    if key not in self._names:
      name, k = path, 2
      while name in self.params:
        name, k = f"{path}_{k}", k + 1
      self._names[key] = name
      self.params[name] = array
      if stacked:
        self._stacked.append(name)
    name = self._names[key]
    return lambda env, params, n: params[name]

  def _output(self, value: Any) -> Callable:
    if not isinstance(value, int) or self.facts.is_constant(value):
      array = self.facts.constants[value] if isinstance(value, int) else value
      array = jnp.asarray(array)
      batch = self.facts.batch[value] if isinstance(value, int) else {}

      def constant(env, params, n):
        shape = tuple(n * s if a in batch else s for a, s in enumerate(array.shape))
        return jnp.broadcast_to(array, shape)

      return constant
    return self._read(value)

  # Operations.

  def _steps(self, program: Program) -> list[Step]:
    self._stacked: list[str] = []
    steps: list[Step] = []
    for operation in program.operations:
      if self.facts.varying.isdisjoint(operation.outputs):
        continue
      if all(self._empty(i) for i in operation.outputs):
        continue
      if operation.name == "scan":
        steps.append(self._scan(operation))
      elif operation.outputs[0] in self.units.flat:
        steps.append(self._flat(operation))
      elif operation.name in MOVES:
        steps.append(self._move(operation))
      elif operation.name in ELEMENTWISE:
        steps.append(self._elementwise(operation))
      elif operation.name in PRODUCTS:
        steps.append(self._product(operation))
      else:
        steps.append(self._same(operation))
    return steps

  def _same(self, operation: Operation) -> Step:
    """The same operation; a sum over units gets what the removed ones add."""
    if operation.outputs[0] in self.units.contracts and self._empty(
      operation.inputs[0]
    ):
      return self._nothing(operation.outputs[0])
    reads = [
      self._constant(i, [np.arange(s) for s in np.shape(self._array(i))])
      if self.facts.is_constant(i)
      else self._read(i)
      for i in operation.inputs
    ]
    bind = _bind(operation, operation.params)
    finish = self._finish(operation.outputs[0])

    def step(env, params, n):
      outputs = bind(*(read(env, params, n) for read in reads))
      env.update(zip(operation.outputs, outputs, strict=True))
      finish(env, params, n)

    return step

  def _array(self, value):
    return self.facts.constants[value] if isinstance(value, int) else value

  def _finish(self, out: int) -> Step:
    """Adds what removed units contribute, or leaves it to the bias that follows."""
    extra = self.constants.get(out)
    if extra is None:
      return lambda env, params, n: None
    following = self._uses.get(out, [])
    if len(following) == 1 and self._is_bias(following[0], out):
      self._pending[out] = extra
      return lambda env, params, n: None
    rank = len(self.units.kept[out])
    read = self._param("constant", extra, (out, "extra"), extra.ndim > rank)

    def step(env, params, n):
      env[out] = env[out] + _spread(read(env, params, n), self._shape(out, n))

    return step

  def _is_bias(self, operation: Operation | None, value: int) -> bool:
    if operation is None or operation.name not in ("add", "sub"):
      return False
    left, right = operation.inputs
    other = right if left == value else left
    positive = operation.name == "add" or left == value
    return positive and self.facts.is_constant(other) and isinstance(other, int)

  def _flat(self, operation: Operation) -> Step:
    """On a list of pixels."""
    out = operation.outputs[0]
    if operation.name in _RESHAPES:
      [source] = operation.inputs

      def step(env, params, n):
        env[out] = env[source]

      return step
    shape = self.facts.shapes[out]
    reads = []
    for i in operation.inputs:
      if not self.facts.is_constant(i):
        reads.append(lambda env, params, n, i=i: env[i])
        continue
      array = np.asarray(self._array(i))
      if array.size > 1:
        array = np.broadcast_to(array, shape).reshape(1, -1)[:, self.pixels]
      made_of = self.facts.made_of[i] if isinstance(i, int) else ()
      if made_of:
        reads.append(self._param(made_of[-1], array, (i, "flat"), False))
      else:
        reads.append(lambda env, params, n, a=array: a)
    bind = _bind(operation, operation.params)

    def elementwise(env, params, n):
      size = (n, len(self.pixels))  # pyright: ignore[reportArgumentType]
      [env[out]] = bind(*(_spread(read(env, params, n), size) for read in reads))

    return elementwise

  def _elementwise(self, operation: Operation) -> Step:
    out = operation.outputs[0]
    sets = self.units.kept[out]
    extra = None
    for i in operation.inputs:
      if isinstance(i, int) and i in self._pending:
        extra = self._pending.pop(i)
        extra = extra if operation.name == "add" else -extra
    reads = [
      self._constant(i, sets, out, extra)
      if self.facts.is_constant(i)
      else self._read(i)
      for i in operation.inputs
    ]
    bind = _bind(operation, operation.params)

    def step(env, params, n):
      shape = self._shape(out, n)
      outputs = bind(*(_spread(read(env, params, n), shape) for read in reads))
      env.update(zip(operation.outputs, outputs, strict=True))

    return step

  def _product(self, operation: Operation) -> Step:
    out = operation.outputs[0]
    varying = [
      k for k, i in enumerate(operation.inputs) if not self.facts.is_constant(i)
    ]
    if len(varying) == 2:
      return self._same(operation)
    side = varying[0]
    value, weights = operation.inputs[side], operation.inputs[1 - side]
    if self._empty(value):
      return self._nothing(out)
    params_of = dict(operation.params)
    if operation.name == "dot_general":
      sets = self._dot_sets(operation, side)
    else:
      sets = self._kernel_sets(operation, params_of)
    array, stacked = self._array(weights), weights in self.facts.stacked
    for axis, kept in enumerate(sets):
      array = np.take(array, kept, axis + stacked)
    made_of = self.facts.made_of[weights] if isinstance(weights, int) else ()
    path = made_of[-1] if made_of else "constant"
    kernel = self._param(path, array, (out, "kernel"), stacked)
    self.kernels[self._names[out, "kernel"]] = self._array(weights).shape
    read, bind = self._read(value), _bind(operation, params_of)
    finish = self._finish(out)

    def step(env, params, n):
      pair = read(env, params, n), kernel(env, params, n)
      [env[out]] = bind(*(pair if side == 0 else pair[::-1]))
      finish(env, params, n)

    return step

  def _nothing(self, out: int) -> Step:
    """A sum of which no unit is left."""
    extra = self.constants.get(out)
    extra = np.zeros((1,) * len(self.units.kept[out])) if extra is None else extra
    array = extra.astype(self.facts.program.dtypes[out])
    stacked = extra.ndim > len(self.units.kept[out])
    read = self._param("constant", array, (out, "extra"), stacked)

    def step(env, params, n):
      env[out] = _spread(read(env, params, n), self._shape(out, n))

    return step

  def _dot_sets(self, operation: Operation, side: int) -> list[np.ndarray]:
    """What is kept of a kernel along each of its axes."""
    axes, batch = operation.params["dimension_numbers"]
    value, weights = operation.inputs[side], operation.inputs[1 - side]
    rank = np.ndim(self._array(weights)) - (weights in self.facts.stacked)
    kept, out = self.units.kept[value], self.units.kept[operation.outputs[0]]
    mine = len(kept) - len(axes[side])
    start = mine if side == 0 else len(batch[0])
    sets = {
      w: kept[x]
      for pair in (axes, batch)
      for x, w in zip(pair[side], pair[1 - side], strict=True)
    }
    free = [a for a in range(rank) if a not in sets]
    sets.update({a: out[start + k] for k, a in enumerate(free)})
    return [sets[a] for a in range(rank)]

  def _kernel_sets(self, operation: Operation, params_of: dict) -> list[np.ndarray]:
    value, weights = operation.inputs
    dims, groups = params_of["dimension_numbers"], params_of["feature_group_count"]
    sets = [np.arange(s) for s in self.facts.shapes[weights]]
    kept = self.units.kept[value][dims.lhs_spec[1]]
    sets[dims.rhs_spec[0]] = self.units.kept[operation.outputs[0]][dims.out_spec[1]]
    if groups == 1:
      sets[dims.rhs_spec[1]] = kept
    else:
      each = self.facts.shapes[value][dims.lhs_spec[1]] // groups
      params_of["feature_group_count"] = len(kept) // each
    return sets

  def _move(self, operation: Operation) -> Step:
    name, out = operation.name, operation.outputs[0]
    if name in ("concatenate", "stack"):
      return self._concatenate(operation)
    if name in ("slice", "split"):
      return self._slice(operation)
    if name == "pad":
      return self._pad(operation)
    [source] = operation.inputs
    read = self._read(source)
    if name in _RESHAPES:

      def reshape(env, params, n):
        env[out] = read(env, params, n).reshape(self._shape(out, n))

      return reshape
    if name == "broadcast_in_dim":
      dims = operation.params["broadcast_dimensions"]

      def broadcast(env, params, n):
        x = read(env, params, n)
        env[out] = lax.broadcast_in_dim(x, self._shape(out, n), dims)

      return broadcast
    return self._same(operation)

  def _slice(self, operation: Operation) -> Step:
    """`slice` and `split`: of each axis the places that are kept of both."""
    [source] = operation.inputs
    p, read = operation.params, self._read(source)
    kept, cuts = self.units.kept[source], []
    starts = {}
    if operation.name == "split":
      ends = np.cumsum(p["sizes"])
      for out, size, end in zip(operation.outputs, p["sizes"], ends, strict=True):
        starts[out] = {p["axis"]: (end - size, 1)}
    else:
      strides = p["strides"] or (1,) * len(kept)
      rows = enumerate(zip(p["start_indices"], strides, strict=True))
      starts[operation.outputs[0]] = dict(rows)
    for out, begins in starts.items():
      if self._empty(out):
        continue
      places = {}
      for axis, (start, stride) in begins.items():
        if axis in self.facts.batch[source]:
          if axis not in self.facts.batch[out] or start or stride > 1:
            raise ValueError("compact cannot follow a 'slice' of the batch.")
          continue
        wanted = start + stride * self.units.kept[out][axis]
        places[axis] = np.searchsorted(kept[axis], wanted)
      cuts.append((out, places))

    def step(env, params, n):
      x = read(env, params, n)
      for out, places in cuts:
        env[out] = x
        for axis, index in places.items():
          env[out] = _take(env[out], index, axis)

    return step

  def _pad(self, operation: Operation) -> Step:
    source, fill = operation.inputs
    out, config, places = operation.outputs[0], [], {}
    for axis, (low, high, interior) in enumerate(operation.params["padding_config"]):
      before, after = self.units.kept[source][axis], self.units.kept[out][axis]
      low, size = int(low), self.facts.shapes[source][axis]
      if axis in self.facts.batch[source]:
        if low or high or interior:
          raise ValueError("compact cannot follow a 'pad' of the batch.")
        config.append((0, 0, 0))
      elif interior:
        full = len(before) == size and len(after) == self.facts.shapes[out][axis]
        if not full:
          raise ValueError("compact cannot remove units that a 'pad' puts apart.")
        config.append((low, int(high), int(interior)))
      else:
        index = after - low
        inside = index[(index >= 0) & (index < size)]
        places[axis] = np.searchsorted(before, inside)
        below, above = np.count_nonzero(index < 0), np.count_nonzero(index >= size)
        config.append((int(below), int(above), 0))
    read = self._read(source)
    value = jnp.asarray(self._array(fill)).reshape(())
    if self._empty(source):  # the border alone is left

      def border(env, params, n):
        env[out] = jnp.broadcast_to(value, self._shape(out, n))

      return border

    def step(env, params, n):
      x = read(env, params, n)
      for axis, index in places.items():
        x = _take(x, index, axis)
      env[out] = lax.pad(x, value, config) if np.any(config) else x

    return step

  def _concatenate(self, operation: Operation) -> Step:
    out, p = operation.outputs[0], operation.params
    stack = operation.name == "stack"
    axis = p["axis" if stack else "dimension"]
    kept, parts, end = self.units.kept[out], [], 0
    for i in operation.inputs:
      shape = self.facts.shapes[i] if isinstance(i, int) else np.shape(i)
      start, end = end, end + (1 if stack else shape[axis])
      mine = kept[axis][(kept[axis] >= start) & (kept[axis] < end)] - start
      if not len(mine):
        continue
      sets = [s for a, s in enumerate(kept) if not (stack and a == axis)]
      if not stack:
        sets[axis] = mine
      if self.facts.is_constant(i):
        parts.append((self._constant(i, sets), sets))
      else:
        parts.append((self._read(i), None))
    batch = self.facts.batch[out]
    grows = [a for a in range(len(kept)) if a in batch and not (stack and a == axis)]

    def step(env, params, n):
      arrays = []
      for read, sets in parts:
        x = read(env, params, n)
        if sets is not None:
          shape = [len(s) for s in sets]
          for a in grows:
            shape[a - (stack and a > axis)] *= n
          x = _spread(jnp.asarray(x), tuple(shape))
        arrays.append(x)
      join = jnp.stack if stack else jnp.concatenate
      env[out] = join(arrays, axis) if stack or len(arrays) > 1 else arrays[0]

    return step

  def _scan(self, operation: Operation) -> Step:
    p, body = operation.params, operation.params["body"]
    consts, carries = p["num_consts"], p["num_carry"]
    first, length = consts + carries, p["length"]
    outside = self._stacked
    inner_steps = self._steps(body)
    stacked, self._stacked = self._stacked, outside
    fixed, sliced, start = {}, {}, {}
    for k, (inner, outer) in enumerate(zip(body.inputs, operation.inputs, strict=True)):
      if inner not in self.facts.varying or inner not in self.units.kept:
        continue
      group = fixed if k < consts else start if k < first else sliced
      if self.facts.is_constant(outer):
        sets, full = self.units.kept[inner], self.facts.shapes[inner]
        group[inner] = (self._constant(outer, sets, inner), full)
      else:
        group[inner] = (self._read(outer), None)
    if any(self.facts.is_constant(i) for i in body.outputs):
      raise ValueError("compact cannot follow a loop with constant results ('scan').")
    outputs = [self._output(i) for i in body.outputs]

    def step(env, params, n):
      def begin(group):
        values = {}
        for inner, (read, constant) in group.items():
          x = read(env, params, n)
          values[inner] = (
            x if constant is None else _spread(jnp.asarray(x), self._shape(inner, n))
          )
        return values

      def layer(carry, slices):
        values, weights = slices
        inside = {**begun, **dict(zip(start, carry, strict=True)), **values}
        every = {**params, **weights}
        for inner_step in inner_steps:
          inner_step(inside, every, n)
        after = [output(inside, every, n) for output in outputs]
        return after[:carries], after[carries:]

      begun = begin(fixed)
      xs = begin(sliced), {name: params[name] for name in stacked}
      carry, rest = lax.scan(
        layer,
        list(begin(start).values()),
        xs,
        length=length,
        reverse=p["reverse"],
        unroll=p["unroll"],
      )
      env.update(zip(operation.outputs, [*carry, *rest], strict=True))

    return step


def _uses(program: Program) -> dict[int, list[Operation | None]]:
  """The operations that read each value; None for the program's outputs."""
  found: dict[int, list] = {}
  for operation in program.operations:
    for i in _program.operands(operation):
      found.setdefault(i, []).append(operation)
    if operation.name == "scan":
      found.update(_uses(operation.params["body"]))
  for i in program.outputs:
    if isinstance(i, int):
      found.setdefault(i, []).append(None)
  return found


def _bind(operation: Operation, params: dict) -> Callable:
  several = operation.primitive.multiple_results

  def bind(*values):
    values = [jnp.asarray(value) for value in values]
    outputs = operation.primitive.bind(*values, **params)
    return outputs if several else [outputs]

  return bind


def _spread(x: Any, shape: tuple[int, ...]) -> Any:
  """Repeats an array along its axes of size one; a scalar along all."""
  if np.ndim(x) == 0 or np.shape(x) == shape:
    return jnp.broadcast_to(x, shape)
  return lax.broadcast_in_dim(x, shape, tuple(range(len(shape))))


def _take(x: jax.Array, index: np.ndarray, axis: int) -> jax.Array:
  """`x[index]` along an axis, as a slice where it is one."""
  size = x.shape[axis]
  if len(index) == size and np.array_equal(index, np.arange(size)):
    return x
  gaps = np.unique(np.diff(index))
  if len(gaps) <= 1 and (not len(gaps) or gaps[0] > 0):
    stride = int(gaps[0]) if len(gaps) else 1
    return lax.slice_in_dim(x, int(index[0]), int(index[-1]) + 1, stride, axis)
  return jnp.take(x, index, axis=axis, mode="clip")
