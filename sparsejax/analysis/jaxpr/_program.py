"""A traced function as one flat list of operations, with every call inlined."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.extend import core

PyTree = Any
# Primitives that call a function; each stores its jaxpr under one of two names.
_CALLS = {
  "closed_call",
  "core_call",
  "checkpoint",
  "custom_jvp_call",
  "custom_vjp_call",
  "jit",
  "pjit",
  "remat",
  "remat2",
}


class Operation(NamedTuple):
  """One primitive; its operands are numbers of values, or arrays for literals."""

  primitive: core.Primitive
  params: dict[str, Any]
  inputs: tuple[Any, ...]  # of int, or arrays where a literal was written
  outputs: tuple[int, ...]

  @property
  def name(self) -> str:
    """The name of the primitive."""
    return self.primitive.name


class Program(NamedTuple):
  """A function `(params, inputs) -> outputs`, or the body of a loop."""

  operations: tuple[Operation, ...]
  params: tuple[int, ...]
  inputs: tuple[int, ...]
  outputs: tuple[Any, ...]
  constants: dict[int, Any]
  shapes: dict[int, tuple[int, ...]]
  dtypes: dict[int, Any]


def trace(
  apply_fn: Callable, params: PyTree, inputs: PyTree, platform: str | None = None
) -> tuple[Program, Any]:
  """Traces `apply_fn(params, inputs)`.

  Args:
    apply_fn: any traceable function.
    params: pytree of arrays or of their abstract values.
    inputs: pytree of arrays or of their abstract values.
    platform: the platform whose branches of `jax.lax.platform_dependent` are taken;
      None is the default backend.

  Returns:
    The program, without operations that no output depends on, and the outputs' treedef.
  """
  params, inputs = jax.tree.map(_abstract, (params, inputs))
  closed, out = jax.make_jaxpr(apply_fn, return_shape=True)(params, inputs)
  platform = jax.default_backend() if platform is None else platform
  builder = _Builder(platform)
  count = len(jax.tree.leaves(params))
  program = builder.program(closed.jaxpr, closed.consts, count)
  return program, jax.tree.structure(out)


def varying(program: Program, inputs: Sequence[bool] | None = None) -> set[int]:
  """Returns the numbers of all values that depend on the program's inputs."""
  flags = [True] * len(program.inputs) if inputs is None else inputs
  found = {i for i, flag in zip(program.inputs, flags, strict=True) if flag}
  for operation in program.operations:
    if any(isinstance(i, int) and i in found for i in operation.inputs):
      found.update(operation.outputs)
  return found


def operands(operation: Operation) -> Iterator[int]:
  """Yields the numbers of an operation's operands that are not literals."""
  return (i for i in operation.inputs if isinstance(i, int))


def evaluate(
  program: Program,
  params: Sequence[Any],
  inputs: Sequence[Any],
  visit: Callable[[Operation, list], Any] = lambda operation, values: None,
  replace: Callable[[Operation, list], Any] = lambda operation, values: None,
) -> tuple[list, list[tuple[Operation, Any]]]:
  """Evaluates a program, and a function of the operands of each operation.

  Args:
    program: the result of `trace`.
    params: leaves of the parameters.
    inputs: leaves of the inputs.
    visit: `(operation, values of its operands) -> arrays or None`.
    replace: `(operation, values of its operands) -> outputs or None`, the list of the
      operation's outputs if they are computed in another way. Not called inside loops.

  Returns:
    The leaves of the outputs, and the results of `visit` that are not None, in order,
    each with its operation. Results from a loop's body have a leading axis of
    iterations.
  """
  env: dict[int, Any] = {i: jax.numpy.asarray(c) for i, c in program.constants.items()}
  env.update(zip(program.params, params, strict=True))
  env.update(zip(program.inputs, inputs, strict=True))
  read = lambda i: env[i] if isinstance(i, int) else jax.numpy.asarray(i)
  visits = []
  for operation in program.operations:
    values = [read(i) for i in operation.inputs]
    result = visit(operation, values)
    if result is not None:
      visits.append((operation, result))
    outputs = replace(operation, values)
    if outputs is None and operation.name == "scan":
      outputs, inside = _scan(operation, values, visit)
      visits.extend(inside)
    elif outputs is None:
      outputs = operation.primitive.bind(*values, **operation.params)
      outputs = outputs if operation.primitive.multiple_results else [outputs]
    env.update(zip(operation.outputs, outputs, strict=True))
  return [read(i) for i in program.outputs], visits


def _scan(operation, values, visit):
  p, body = operation.params, operation.params["body"]
  consts, carries = p["num_consts"], p["num_carry"]
  visited = []

  def step(carry, slices):
    inputs = [*values[:consts], *carry, *slices]
    outputs, visits = evaluate(body, (), inputs, visit)
    visited[:] = [inner for inner, _ in visits]
    return outputs[:carries], (outputs[carries:], [result for _, result in visits])

  carry, (stacked, results) = jax.lax.scan(
    step,
    values[consts : consts + carries],
    values[consts + carries :],
    length=p["length"],
    reverse=p["reverse"],
    unroll=p["unroll"],
  )
  return [*carry, *stacked], list(zip(visited, results, strict=True))


def _abstract(leaf):
  return jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.canonicalize_dtype(leaf.dtype))


class _Builder:
  """Numbers the values of a jaxpr while inlining its calls."""

  def __init__(self, platform: str):
    self.platform = platform
    self.shapes: dict[int, tuple[int, ...]] = {}
    self.dtypes: dict[int, Any] = {}

  def program(self, jaxpr, consts, params: int) -> Program:
    env, operations, constants = {}, [], {}
    for var, value in zip(jaxpr.constvars, consts, strict=True):
      env[var] = self.new(var.aval)
      constants[env[var]] = value
    for var in jaxpr.invars:
      env[var] = self.new(var.aval)
    self.inline(jaxpr, env, operations, constants)
    numbers = [env[var] for var in jaxpr.invars]
    outputs = tuple(self.read(env, var) for var in jaxpr.outvars)
    return Program(
      _needed(operations, outputs),
      tuple(numbers[:params]),
      tuple(numbers[params:]),
      outputs,
      constants,
      self.shapes,
      self.dtypes,
    )

  def new(self, aval) -> int:
    number = len(self.shapes)
    self.shapes[number] = tuple(getattr(aval, "shape", ()))
    self.dtypes[number] = getattr(aval, "dtype", None)
    return number

  def read(self, env, var):
    if isinstance(var, core.Literal):
      return np.asarray(var.val, getattr(var.aval, "dtype", None))
    return env[var]

  def inline(self, jaxpr, env, operations, constants) -> None:
    for eqn in jaxpr.eqns:
      inputs = tuple(self.read(env, var) for var in eqn.invars)
      name, params = eqn.primitive.name, eqn.params
      if name == "platform_index":
        # Only the `cond` that follows reads this index, and `branch` resolves it.
        env[eqn.outvars[0]] = -1
        continue
      # Inline calls, and conditionals whose branch is known.
      inner = None
      if name in _CALLS:
        inner = params.get("jaxpr", params.get("call_jaxpr"))
      elif name == "cond":
        inner, inputs = self.branch(params, inputs)
      if inner is not None:
        for var, out in zip(
          eqn.outvars, self.call(inner, inputs, operations, constants), strict=True
        ):
          env[var] = out
        continue
      # Keep loops as one operation, with their body as a program.
      if name == "scan":
        body = params["jaxpr"]
        params = {**params, "body": self.program(body.jaxpr, body.consts, 0)}
      # Split a reshape of permuted axes in two, so that others are plain reshapes.
      if name == "reshape" and params.get("dimensions") is not None:
        order, aval = params["dimensions"], eqn.invars[0].aval
        shape = tuple(aval.shape[axis] for axis in order)
        turned = self.new(jax.ShapeDtypeStruct(shape, aval.dtype))
        operations.append(
          Operation(lax.transpose_p, {"permutation": order}, inputs, (turned,))
        )
        inputs, params = (turned,), {**params, "dimensions": None}
      outputs = tuple(self.new(var.aval) for var in eqn.outvars)
      env.update(zip(eqn.outvars, outputs, strict=True))
      operations.append(Operation(eqn.primitive, params, inputs, outputs))

  def call(self, inner, inputs, operations, constants) -> list:
    jaxpr, consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
    env = dict(zip(jaxpr.invars, inputs, strict=True))
    for var, value in zip(jaxpr.constvars, consts, strict=True):
      env[var] = self.new(var.aval)
      constants[env[var]] = value
    self.inline(jaxpr, env, operations, constants)
    return [self.read(env, var) for var in jaxpr.outvars]

  def branch(self, params, inputs):
    """Returns the branch of a `cond` that will be taken, if that is known."""
    index, rest = inputs[0], inputs[1:]
    branches, platforms = params["branches"], params.get("branches_platforms")
    if platforms is not None:
      known = [self.platform in (p or (self.platform,)) for p in platforms]
      return branches[known.index(True)], rest
    if not isinstance(index, int):
      return branches[min(max(int(index), 0), len(branches) - 1)], rest
    return None, inputs


def _needed(operations, outputs) -> tuple[Operation, ...]:
  """Removes the operations that no output depends on."""
  needed = {out for out in outputs if isinstance(out, int)}
  kept = []
  for operation in reversed(operations):
    if needed.intersection(operation.outputs):
      needed.update(operands(operation))
      kept.append(operation)
  return tuple(reversed(kept))
