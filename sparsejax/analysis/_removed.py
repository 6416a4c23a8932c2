"""What removed units contribute: constants, to be added where they were summed."""

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.analysis import _program
from sparsejax.analysis._facts import Facts
from sparsejax.analysis._reach import Reach
from sparsejax.analysis._rules import PRODUCTS
from sparsejax.analysis._units import Units

_TOLERANCE = 1e-6  # of the largest: positions that differ by rounding alone


def contributions(
  facts: Facts, reach: Reach, units: Units, leaves: list
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray], dict[int, int]]:
  """Sums over the units that are not kept; each of them is a constant.

  Args:
    facts: of the program.
    reach: of the program.
    units: settled.
    leaves: of the parameters, masked.

  Returns:
    `{value: what to add to it}`, with an axis of rounds in front inside of a loop;
    which elements of operands were removed, and `{value: operand}` for those of
    the first that differ from position to position.
  """
  removed, sides = {}, {}
  for operation in _all(facts.program):
    out, operands = operation.outputs[0], list(operation.inputs)
    varying = facts.variables(operation)
    product = operation.name in PRODUCTS and len(varying) == 1
    if not product and out not in units.contracts:
      continue
    i = varying[0]
    flags = ~units.mask(i) & ~reach.varies[i] & reach.nonzero[i]
    if flags.any() and all(len(kept) for kept in units.kept[out]):
      for axis, size in facts.batch[i].items():
        flags = np.any(flags, axis, keepdims=True) if size > 1 else flags
      removed[out], sides[out] = flags, operands.index(i)
  if not removed:
    return {}, {}, {}

  def visit(operation, values):
    out = operation.outputs[0]
    if out not in removed:
      return None
    values, side = list(values), sides[out]
    zeros = jnp.zeros_like(values[side])
    values[side] = jnp.where(removed[out], values[side], zeros)
    return operation.primitive.bind(*values, **operation.params)

  order = []

  @jax.jit
  def run(leaves, inputs):
    seen = _program.evaluate(facts.program, leaves, inputs, visit)[1]
    order[:] = [operation for operation, _ in seen]
    return [result for _, result in seen]

  program = facts.program
  zeros = [jnp.zeros(program.shapes[i], program.dtypes[i]) for i in program.inputs]
  results = run(leaves, zeros)
  found, uneven = {}, {}
  for operation, result in zip(order, results, strict=True):
    out = operation.outputs[0]
    array, even = _restrict(np.asarray(result), out, facts, units)
    if array.any():
      found[out] = array
      if not even:
        uneven[out] = operation.inputs[sides[out]]
  return found, removed, uneven


def _all(program):
  for operation in program.operations:
    yield operation
    if operation.name == "scan":
      yield from operation.params["body"].operations


def _restrict(array, out, facts, units) -> tuple[np.ndarray, bool]:
  """One example's kept elements; once where they are the same at all positions."""
  stacked, even = array.ndim - len(facts.shapes[out]), True
  roots = units.roots(out)
  tolerance = _TOLERANCE * np.abs(array).max(initial=0)
  for axis, kept in enumerate(units.kept[out]):
    a = axis + stacked
    if axis in facts.batch[out]:
      array = array.take(np.arange(facts.batch[out][axis]), a)
    array = array.take(kept, a)
    if (roots == roots.take([0], axis)).all() and array.shape[a] > 1:
      if np.ptp(array, a).max(initial=0) <= tolerance:
        array = array.take([0], a)
      else:
        even = False
  return array, even
