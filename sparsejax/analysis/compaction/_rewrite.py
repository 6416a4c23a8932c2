"""Builds the smaller program: each operation on the kept elements of its operands."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax.analysis.compaction import _rewrite_moves
from sparsejax.analysis.compaction._bias_folding import Channels, Removed
from sparsejax.analysis.compaction._constants import Facts
from sparsejax.analysis.compaction._groups import Units
from sparsejax.analysis.compaction._rules import ELEMENTWISE, PRODUCTS
from sparsejax.analysis.compaction._values import Step, Values, binder, spread
from sparsejax.analysis.jaxpr import _program
from sparsejax.analysis.jaxpr._movement import MOVES, RESHAPES
from sparsejax.analysis.jaxpr._program import Operation, Program


class Replay:
  """The smaller program, as a list of steps.

  Attributes:
    params: `{name: array}`, the kept parts of the parameters.
    kernels: `{name: shape before}`, for the parameters that are factors of a product.
    pixels: indices of the flattened input that are kept, or None for all.
  """

  def __init__(self, facts: Facts, units: Units, removed: Removed):
    self.facts, self.units, self.removed = facts, units, removed
    self.values = Values(facts, units)
    self.params = self.values.params
    self._kernels: dict[tuple, tuple[int, ...]] = {}
    self._pending: dict[int, np.ndarray] = {}
    program = facts.program
    [self.input] = program.inputs
    self.pixels = None
    if units.flat:
      self.pixels = np.flatnonzero(units.mask(self.input).ravel())
    # Build the steps first: that collects the parts of parameters that they read.
    # `share` then decides which arrays are stored, and only now do kernels have names.
    self._uses = _uses(program)
    self.steps = self._steps(program)
    self.outputs = [self.values.output(i) for i in program.outputs]
    self.values.share()
    named = ((self.values.names[key], shape) for key, shape in self._kernels.items())
    self.kernels = {}
    for name, shape in named:
      if name in self.params:
        self.kernels.setdefault(name, self.values.before.get(name, shape))

  def __call__(self, params: dict[str, jax.Array], inputs: jax.Array) -> list:
    """Runs the steps on inputs, or on the pixels of them that are kept."""
    n = inputs.shape[0]
    env = {self.input: inputs}
    fixed = {name: jnp.asarray(array) for name, array in self.values.fixed.items()}
    params = {**fixed, **params}
    for step in self.steps:
      step(env, params, n)
    return [output(env, params, n) for output in self.outputs]

  def _steps(self, program: Program) -> list[Step]:
    """Returns one step per operation that varies and of which something is kept."""
    steps: list[Step] = []
    for operation in program.operations:
      if self.facts.varying.isdisjoint(operation.outputs):
        continue
      if all(self.values.empty(i) for i in operation.outputs):
        continue
      if operation.name == "scan":
        steps.append(self._scan(operation))
      elif operation.outputs[0] in self.units.flat:
        steps.append(self._flat(operation))
      elif operation.name in MOVES:
        moved = _rewrite_moves.step_of(self.values, operation)
        steps.append(moved or self._same(operation))
      elif operation.name in ELEMENTWISE:
        steps.append(self._elementwise(operation))
      elif operation.name in PRODUCTS:
        steps.append(self._product(operation))
      else:
        steps.append(self._same(operation))
    return steps

  def _same(self, operation: Operation) -> Step:
    """Repeats the operation; a sum over units also gets the removed contributions."""
    if operation.outputs[0] in self.units.contracts and self.values.empty(
      operation.inputs[0]
    ):
      return self._nothing(operation.outputs[0])
    reads = [
      self.values.constant(i, [np.arange(s) for s in np.shape(self.facts.array(i))])
      if self.facts.is_constant(i)
      else self.values.read(i)
      for i in operation.inputs
    ]
    bind = binder(operation, operation.params)
    finish = self._finish(operation.outputs[0])

    def step(env, params, n):
      outputs = bind(*(read(env, params, n) for read in reads))
      env.update(zip(operation.outputs, outputs, strict=True))
      finish(env, params, n)

    return step

  def _finish(self, out: int) -> Step:
    """Adds what removed units contributed, or defers it to the bias that follows."""
    extra = self.removed.added.get(out)
    if extra is None:
      return lambda env, params, n: None
    following = self._uses.get(out, [])
    if len(following) == 1 and self._is_bias(following[0], out):
      self._pending[out] = extra
      return lambda env, params, n: None
    rank = len(self.units.kept[out])
    read = self.values.param("constant", extra, (out, "extra"), extra.ndim > rank)

    def step(env, params, n):
      env[out] = env[out] + spread(read(env, params, n), self.values.shape(out, n))

    return step

  def _is_bias(self, operation: Operation | None, value: int) -> bool:
    """Returns whether an operation adds a constant to a value."""
    if operation is None or operation.name not in ("add", "sub"):
      return False
    left, right = operation.inputs
    other = right if left == value else left
    positive = operation.name == "add" or left == value
    return positive and self.facts.is_constant(other) and isinstance(other, int)

  def _flat(self, operation: Operation) -> Step:
    """Applies an elementwise operation or a reshape to a list of pixels."""
    out = operation.outputs[0]
    if operation.name in RESHAPES:
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
      array = np.asarray(self.facts.array(i))
      if array.size > 1:
        array = np.broadcast_to(array, shape).reshape(1, -1)[:, self.pixels]
      made_of = self.facts.paths(i)
      if made_of:
        reads.append(self.values.param(made_of[-1], array, (i, "flat"), False))
      else:
        reads.append(lambda env, params, n, a=array: a)
    bind = binder(operation, operation.params)

    def elementwise(env, params, n):
      size = (n, len(self.pixels))  # pyright: ignore[reportArgumentType]
      [env[out]] = bind(*(spread(read(env, params, n), size) for read in reads))

    return elementwise

  def _elementwise(self, operation: Operation) -> Step:
    """Applies an elementwise operation; adds deferred contributions to its bias."""
    out = operation.outputs[0]
    sets = self.units.kept[out]
    extra = None
    for i in operation.inputs:
      if isinstance(i, int) and i in self._pending:
        extra = self._pending.pop(i)
        extra = extra if operation.name == "add" else -extra
    reads = [
      self.values.constant(i, sets, out, extra)
      if self.facts.is_constant(i)
      else self.values.read(i)
      for i in operation.inputs
    ]
    bind = binder(operation, operation.params)

    def step(env, params, n):
      shape = self.values.shape(out, n)
      outputs = bind(*(spread(read(env, params, n), shape) for read in reads))
      env.update(zip(operation.outputs, outputs, strict=True))

    return step

  def _product(self, operation: Operation) -> Step:
    """Multiplies the kept operand with the kept part of the kernel."""
    out = operation.outputs[0]
    varying = [
      k for k, i in enumerate(operation.inputs) if not self.facts.is_constant(i)
    ]
    if len(varying) == 2:
      return self._same(operation)
    side = varying[0]
    value, weights = operation.inputs[side], operation.inputs[1 - side]
    channels = self.removed.channels.get(out)
    if self.values.empty(value) and channels is None:
      return self._nothing(out)
    params_of = dict(operation.params)

    # Cut the kernel to the rows of kept inputs and the columns of kept outputs.
    if operation.name == "dot_general":
      sets = self._dot_sets(operation, side)
    else:
      sets = self._kernel_sets(operation, params_of)
    array, stacked = self.facts.array(weights), weights in self.facts.stacked
    places = self.facts.places(weights) if channels is None else None
    for axis, kept in enumerate(sets):
      array = np.take(array, kept, axis + stacked)
      if places is not None:
        places = places[0], np.take(places[1], kept, axis)
    read, bind = self.values.read(value), binder(operation, params_of)

    # Append one row per channel of constants, and the channels to the operand.
    if channels is not None:
      array = np.concatenate([array, channels.rows], channels.kernel_axis + stacked)
      read = self._with_channels(value, channels, (out, "channels"))

    # A kernel that depends on no parameter is stored as a fixed constant, not trained.
    made_of = self.facts.paths(weights)
    key = (out, "kernel")
    path = made_of[-1] if made_of else None
    kernel = self.values.param(path, np.asarray(array), key, stacked, places)
    self._kernels[key] = self.facts.array(weights).shape
    finish = self._finish(out)

    def step(env, params, n):
      pair = read(env, params, n), kernel(env, params, n)
      [env[out]] = bind(*(pair if side == 0 else pair[::-1]))
      finish(env, params, n)

    return step

  def _with_channels(self, value: int, channels: Channels, key: tuple):
    """Returns a reader of an operand with channels of constants after the kept ones."""
    axis = channels.axis
    path = None if channels.free else "constant"
    patterns = self.values.param(path, channels.patterns, key, False)
    read, empty = self.values.read(value), self.values.empty(value)
    batch, shape = self.facts.batch[value], self.facts.shapes[value]
    kept = zip(shape, self.units.kept[value], strict=True)
    sizes = [len(indices) or size for size, indices in kept]
    sizes[axis] = channels.patterns.shape[axis]

    def with_channels(env, params, n):
      shape = tuple(n * s if a in batch else s for a, s in enumerate(sizes))
      wide = spread(jnp.asarray(patterns(env, params, n)), shape)
      if empty:
        return wide
      return jnp.concatenate([read(env, params, n), wide], axis)

    return with_channels

  def _nothing(self, out: int) -> Step:
    """Makes the step of a sum whose units are all removed: it gives a constant."""
    extra = self.removed.added.get(out)
    extra = np.zeros((1,) * len(self.units.kept[out])) if extra is None else extra
    array = extra.astype(self.facts.program.dtypes[out])
    stacked = extra.ndim > len(self.units.kept[out])
    read = self.values.param("constant", array, (out, "extra"), stacked)

    def step(env, params, n):
      env[out] = spread(read(env, params, n), self.values.shape(out, n))

    return step

  def _dot_sets(self, operation: Operation, side: int) -> list[np.ndarray]:
    """Returns the kept indices of a kernel along each of its axes."""
    axes, batch = operation.params["dimension_numbers"]
    value, weights = operation.inputs[side], operation.inputs[1 - side]
    rank = np.ndim(self.facts.array(weights)) - (weights in self.facts.stacked)
    kept, out = self.units.kept[value], self.units.kept[operation.outputs[0]]
    mine = len(kept) - len(axes[side])
    start = mine if side == 0 else len(batch[0])
    # Contracted and batch axes keep the operand's indices; the kernel's other axes keep
    # those of the output.
    sets = {
      w: kept[x]
      for pair in (axes, batch)
      for x, w in zip(pair[side], pair[1 - side], strict=True)
    }
    free = [a for a in range(rank) if a not in sets]
    sets.update({a: out[start + k] for k, a in enumerate(free)})
    return [sets[a] for a in range(rank)]

  def _kernel_sets(self, operation: Operation, params_of: dict) -> list[np.ndarray]:
    """Returns the kept indices of a convolution kernel; updates the group count."""
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

  def _scan(self, operation: Operation) -> Step:
    """Rebuilds a loop: the body's steps on kept elements, parameters stacked."""
    p, body = operation.params, operation.params["body"]
    consts, carries = p["num_consts"], p["num_carry"]
    first, length = consts + carries, p["length"]
    # Build the body's steps. The parameters that it stacks over iterations become
    # scanned operands below.
    outside, self.values.stacked = self.values.stacked, []
    inner_steps = self._steps(body)
    stacked, self.values.stacked = self.values.stacked, outside
    # Readers of the loop's operands: constants of all iterations, initial carries, and
    # scanned operands.
    fixed, sliced, start = {}, {}, {}
    for k, (inner, outer) in enumerate(zip(body.inputs, operation.inputs, strict=True)):
      if inner not in self.facts.varying or inner not in self.units.kept:
        continue
      group = fixed if k < consts else start if k < first else sliced
      if self.facts.is_constant(outer):
        sets = self.units.kept[inner]
        group[inner] = (self.values.constant(outer, sets, inner), True)
      else:
        group[inner] = (self.values.read(outer), False)
    if any(self.facts.is_constant(i) for i in body.outputs):
      raise ValueError("compact cannot follow a loop with constant results ('scan').")
    outputs = [self.values.output(i) for i in body.outputs]

    def step(env, params, n):
      def begin(group):
        values = {}
        for inner, (read, constant) in group.items():
          x = read(env, params, n)
          if constant:
            x = spread(jnp.asarray(x), self.values.shape(inner, n))
          values[inner] = x
        return values

      # One iteration: `slices` has the scanned values and the stacked parameters.
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
  """Returns the operations that read each value; None for the program's outputs."""
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
