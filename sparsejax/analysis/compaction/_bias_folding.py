"""Folds the constant contributions of removed units into biases, channels or maps.

A removed unit is a constant, so it adds a constant to every sum that it was part of. If
that is the same at all positions, it is added to the bias. If it differs, as next to a
zero border, the cheaper of two forms is used: a map over the positions, or channels of
constants shared by all removed units with the same pattern,

  x[position, unit] = pattern[position] value[unit]
  sum_unit x[position, unit] w[unit] = pattern[position] sum_unit value[unit] w[unit]

whose weights are one more row of the kernel per pattern.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax.analysis.compaction._constants import Facts
from sparsejax.analysis.compaction._groups import Units
from sparsejax.analysis.compaction._reachability import Reach
from sparsejax.analysis.compaction._rules import PRODUCTS
from sparsejax.analysis.jaxpr import _program
from sparsejax.analysis.jaxpr._program import Operation

# Positions whose values differ by less than this share of the largest differ by
# rounding only.
_TOLERANCE = 1e-6  # of the largest: positions that differ by rounding alone


class Channels(NamedTuple):
  """Channels of constants that replace removed units.

  Attributes:
    patterns: has the operand's axes, with one channel per pattern; size 1 along axes on
      which all are the same.
    rows: has the kernel's axes, with one channel per pattern; of the other axes, what
      is kept.
    axis: the operand's axis of channels.
    kernel_axis: the kernel's axis of channels.
    free: whether the patterns hold only zeros and ones, which follow from shapes alone
      and need not be stored.
  """

  patterns: np.ndarray
  rows: np.ndarray
  axis: int
  kernel_axis: int
  free: bool

  @property
  def size(self) -> int:
    """The number of values that have to be stored."""
    return self.rows.size + (0 if self.free else self.patterns.size)


class Removed(NamedTuple):
  """The contributions of removed units, by the value that they are added to.

  Attributes:
    added: arrays to add, with a leading axis of iterations inside a loop.
    channels: channels of constants that are summed with the kept operands instead.
    maps: the entries of both that store one number per position, with the operand whose
      removal caused them.
  """

  added: dict[int, np.ndarray]
  channels: dict[int, Channels]
  maps: dict[int, int]


def contributions(facts: Facts, reach: Reach, units: Units, leaves: list) -> Removed:
  """Computes the sums over the units that are not kept, which are constants.

  Args:
    facts: constants and batch axes of the program.
    reach: reachability flags of the program.
    units: groups, after `settle`.
    leaves: masked leaves of the parameters.

  Returns:
    `Removed`.
  """
  # Find the sums, and for each varying operand the elements that are removed constants.
  # A sum of which no output is kept is skipped.
  removed: dict[int, dict[int, np.ndarray]] = {}
  for operation in _all(facts.program):
    out = operation.outputs[0]
    varying = facts.variables(operation)
    product = operation.name in PRODUCTS and varying
    if not product and out not in units.contracts:
      continue
    if not all(len(kept) for kept in units.kept[out]):
      continue
    flags = {
      operation.inputs.index(i): _constant_elements(facts, reach, units, i)
      for i in varying
    }
    if all(flag.any() for flag in flags.values()):
      removed[out] = flags
  if not removed:
    return Removed({}, {}, {})

  # Compute those sums by evaluating the program itself, with all other elements of the
  # operands set to zero. Of each operand, keep one example.
  def visit(operation, values):
    out = operation.outputs[0]
    if out not in removed:
      return None
    values = list(values)
    for side, flags in removed[out].items():
      values[side] = jnp.where(flags, values[side], jnp.zeros_like(values[side]))
    result = operation.primitive.bind(*values, **operation.params)
    [side, *_] = removed[out]
    operand = values[side]
    for axis, size in facts.batch[operation.inputs[side]].items():
      operand = lax.slice_in_dim(operand, 0, size, axis=axis)
    return result, operand

  order = []

  @jax.jit
  def run(leaves, inputs):
    seen = _program.evaluate(facts.program, leaves, inputs, visit)[1]
    order[:] = [operation for operation, _ in seen]
    return [result for _, result in seen]

  # The input is irrelevant, since removed constants do not depend on it.
  program = facts.program
  zeros = [jnp.zeros(program.shapes[i], program.dtypes[i]) for i in program.inputs]
  results = run(leaves, zeros)

  # Choose how to store each contribution: in the bias where it is even over positions,
  # as channels of constants, or as a map.
  found = Removed({}, {}, {})
  for operation, (result, operand) in zip(order, results, strict=True):
    out = operation.outputs[0]
    features = _feature_axes(operation, facts)
    array, even = _restrict(np.asarray(result), out, features, facts, units)
    if not array.any():
      continue
    side = next(iter(removed[out]))
    channels = None
    if not even and len(removed[out]) == 1:
      channels = _channels(operation, side, np.asarray(operand), facts, units)
    if channels is not None and channels.size <= array.size:
      found.channels[out] = channels
      even = channels.free
    else:
      found.added[out] = array
    if not even:
      found.maps[out] = operation.inputs[side]
  return found


def removed_elements(facts: Facts, reach: Reach, units: Units, value: int):
  """Flags the constants among the elements that are not kept, for one example."""
  flags = _constant_elements(facts, reach, units, value)
  return np.broadcast_to(flags, facts.shapes[value]) & ~units.mask(value)


def _constant_elements(facts, reach, units, value) -> np.ndarray:
  """Flags nonzero constant elements that are not kept, equal along batch axes."""
  flags = ~units.mask(value) & ~reach.varies[value] & reach.nonzero[value]
  for axis, size in facts.batch[value].items():
    flags = np.any(flags, axis, keepdims=True) if size > 1 else flags
  return flags


def _all(program):
  """Yields the operations of a program and of the bodies of its loops."""
  for operation in program.operations:
    yield operation
    if operation.name == "scan":
      yield from operation.params["body"].operations


def _feature_axes(operation: Operation, facts: Facts) -> set[int]:
  """Returns the axes of a product that come from the kernel; a bias has them too."""
  weights = [side for side, i in enumerate(operation.inputs) if facts.is_constant(i)]
  p, rank = operation.params, len(facts.shapes[operation.outputs[0]])
  if operation.name == "conv_general_dilated":
    return {p["dimension_numbers"].out_spec[1]}
  if operation.name != "dot_general" or not weights:
    return set()
  (axes, batch), [side] = p["dimension_numbers"], weights
  free = len(facts.shape(operation.inputs[side])) - len(axes[side]) - len(batch[side])
  first = rank - free if side else len(batch[0])
  return set(range(first, first + free))


def _restrict(array, out, features, facts, units) -> tuple[np.ndarray, bool]:
  """Reduces a contribution to one example's kept elements, and to even axes of size 1.

  Returns the array, and whether it is even: equal at all positions, except along axes
  that a bias has.
  """
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
        even = even and axis in features
  return array, even


def _channels(
  operation: Operation, side: int, operand: np.ndarray, facts: Facts, units: Units
) -> Channels | None:
  """Factors removed units into patterns and values, along the best contracted axis."""
  value, weights = operation.inputs[side], operation.inputs[1 - side]
  p = operation.params
  # Candidates are the contracted axes, paired with those of the kernel.
  if operation.name == "dot_general":
    axes, batch = p["dimension_numbers"]
    pairs = [] if batch[0] else zip(axes[side], axes[1 - side], strict=True)
  elif operation.name == "conv_general_dilated":
    dims = p["dimension_numbers"]
    grouped = p["feature_group_count"] > 1 or side
    pairs = [] if grouped else [(dims.lhs_spec[1], dims.rhs_spec[1])]
  else:
    return None
  # Inside a loop both arrays have a leading axis of iterations; outside, add one of
  # size 1.
  rounds = operand.ndim - len(facts.shapes[value])
  if rounds != (weights in facts.stacked):
    return None
  kernel = np.asarray(facts.array(weights))
  if not rounds:
    operand, kernel = operand[None], kernel[None]

  # Cut both arrays to what is kept on all axes but the one of channels. Then multiply
  # the values of the removed channels into the kernel: one row per pattern.
  sets = units.kept[value]
  sets = [k if len(k) else np.arange(operand.shape[a + 1]) for a, k in enumerate(sets)]
  kernel_sets = _kernel_sets(operation, side, sets, facts, units)
  found = []
  for axis, kernel_axis in pairs:
    constants = _cut(operand, sets, axis)
    if np.count_nonzero(constants) < np.count_nonzero(operand):
      # Some units have been removed along another axis.
      continue  # units have been removed along another axis
    factors = _factors(constants, axis + 1)
    if factors is None:
      continue
    patterns, mixing = factors
    rows = np.moveaxis(_cut(kernel, kernel_sets, kernel_axis), kernel_axis + 1, -1)
    wide = np.promote_types(rows.dtype, np.float32)
    rows = np.einsum("r...c,rcg->r...g", rows.astype(wide), mixing.astype(wide))
    rows = np.moveaxis(rows, -1, kernel_axis + 1).astype(kernel.dtype)
    free = bool(np.isin(patterns, (0, 1)).all())
    patterns = patterns.astype(operand.dtype)
    rows = rows if rounds else rows[0]
    found.append(Channels(patterns, rows, axis, kernel_axis, free))
  return min(found, key=lambda channels: channels.size, default=None)


def _kernel_sets(operation, side, sets, facts, units) -> dict[int, np.ndarray]:
  """Returns the kept indices of a kernel, along the axes that are cut."""
  out, dims = units.kept[operation.outputs[0]], operation.params["dimension_numbers"]
  if operation.name == "conv_general_dilated":
    return {dims.rhs_spec[0]: out[dims.out_spec[1]]}
  axes, _ = dims
  contracted = dict(zip(axes[1 - side], (sets[a] for a in axes[side]), strict=True))
  rank = len(facts.shape(operation.inputs[1 - side]))
  free = [a for a in range(rank) if a not in contracted]
  first = len(out) - len(free) if side == 0 else 0
  return {**contracted, **{a: out[first + k] for k, a in enumerate(free)}}


def _cut(array: np.ndarray, sets, whole: int) -> np.ndarray:
  """Takes index sets along all axes but one; the first axis is over iterations."""
  for a, kept in sets.items() if isinstance(sets, dict) else enumerate(sets):
    array = array if a == whole else array.take(kept, a + 1)
  return array


def _factors(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray] | None:
  """Splits constants into patterns over positions and values per channel.

  Args:
    array: (iterations, ...), with channels along one axis.
    axis: the axis of channels.

  Returns:
    Patterns (...), with g channels, and values (iterations, channels, g); None if a
    channel's pattern differs between iterations.
  """
  # Divide each channel by its value at the position where it is largest.
  wide = np.moveaxis(array, axis, -1)
  table = wide.reshape(wide.shape[0], -1, wide.shape[-1])
  peaks = np.abs(table).argmax(1, keepdims=True)
  values = np.take_along_axis(table, peaks, 1)[:, 0]
  shares = table / np.where(values, values, 1)[:, None]

  # Channels with equal patterns, up to rounding, share one channel of constants.
  numbers: dict[bytes, int] = {}
  patterns, mixing = [], np.zeros((*values.shape, values.shape[1]), values.dtype)
  for k in np.flatnonzero(values.any(0)):
    each = shares[values[:, k] != 0, :, k]
    if np.ptp(each, 0).max() > _TOLERANCE:
      return None
    whole = np.round(each[0])
    pattern = np.where(np.abs(each[0] - whole) <= _TOLERANCE, whole + 0.0, each[0])
    number = numbers.setdefault(np.round(pattern, 6).tobytes(), len(numbers))
    if number == len(patterns):
      patterns.append(pattern)
    mixing[:, k, number] = values[:, k]
  stacked = np.stack(patterns, -1).reshape(*wide.shape[1:-1], len(patterns))

  # Store the patterns once along the axes on which they are constant.
  for a in range(stacked.ndim - 1):
    if (stacked == stacked.take([0], a)).all():
      stacked = stacked.take([0], a)
  return np.moveaxis(stacked, -1, axis - 1), mixing[..., : len(patterns)]
