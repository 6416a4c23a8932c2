"""Counts the multiply-adds of a program's products."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.analysis.jaxpr import _liveness, _program
from sparsejax.analysis.jaxpr._program import Operation, Program

_CONTRACTIONS = ("conv_general_dilated", "dot_general")
_UNKNOWN = ("cond", "while")


class Product(NamedTuple):
  """The cost of one product."""

  made_of: tuple[str, ...]  # paths of parameters, or the primitive
  multiply_adds: int
  dense: int


def count(program, live, names, varies, times, found) -> None:
  """Adds the cost of each product to `found`.

  Args:
    program: the program whose products are counted.
    live: flags of the elements of values that depend on parameters alone; missing
      values count as live.
    names: the parameters that such a value depends on.
    varies: the values that depend on inputs.
    times: how often the program runs.
    found: the products by the number of their output; updated in place.
  """
  live, names = dict(live), dict(names)
  producers = {i: o for o in program.operations for i in o.outputs}
  fixed = _fixed_values(program)
  # Start from the masks of the parameters and from the values of the constants.
  for i, constant in program.constants.items():
    if not jnp.issubdtype(constant.dtype, jax.dtypes.extended):
      live[i] = np.asarray(constant) != 0
  # Follow the program: propagate flags and names through values of parameters alone,
  # enter loops, and count each product that varies.
  for operation in program.operations:
    made_of = [names.get(i, ()) for i in _program.operands(operation)]
    every = tuple(dict.fromkeys(name for part in made_of for name in part))
    if operation.name in _UNKNOWN:
      raise ValueError(
        "apply_fn must have loops of known length and no branches that depend on "
        f"values, got a {operation.name!r}."
      )
    if not varies.intersection(operation.outputs):
      outputs = _liveness.propagate(operation, program.shapes, live)
      live.update(zip(operation.outputs, outputs, strict=True))
      names.update(dict.fromkeys(operation.outputs, every))
    elif operation.name == "scan":
      _count_scan(operation, live, names, varies, times, found)
    elif operation.name in _CONTRACTIONS:
      if any(_selects(operation, side, fixed, program, producers) for side in (0, 1)):
        continue  # a lookup or a cut, written as a product
      # Of the kernel only live weights count, each once per use. Two activations have
      # no kernel and count whole.
      weights = [i for i in _program.operands(operation) if i not in varies]
      side = operation.inputs.index(weights[0]) if weights else None
      uses, whole = _uses(operation, program.shapes, side)
      key = names.get(weights[0], ()) if weights else ()
      sparse = whole
      if weights:
        flags = _liveness.read(weights[0], program.shapes, live)
        sparse = uses * int(np.count_nonzero(flags))
      number = operation.outputs[0]
      before = found.get(number, Product((), 0, 0))
      found[number] = Product(
        key or (operation.name,),
        before.multiply_adds + times * sparse,
        before.dense + times * whole,
      )


def _selects(operation, side: int, fixed, program, producers) -> bool:
  """Returns whether one operand only selects elements of the other: one 1 per row.

  This holds for kernels that extract patches (`jax.lax.conv_general_dilated_patches`,
  flax's `ConvLocal`) and for `jax.nn.one_hot`, of constants or of the input.
  """
  value, p = operation.inputs[side], operation.params
  if operation.name == "dot_general":
    axes = tuple(p["dimension_numbers"][0][side])
  else:
    spec = p["dimension_numbers"].rhs_spec
    axes = spec[1:] if side == 1 and p["batch_group_count"] == 1 else ()
  if not axes:
    return False
  # A known value selects if all its elements are 0 or 1, with at most one 1 per row.
  if not isinstance(value, int) or value in fixed:
    array = _array(value, program, producers)
    rows = array != 0
    return bool((array == rows).all() and (rows.sum(axes) <= 1).all())
  # Match `one_hot` of the input: indices compared with distinct numbers along the axis.
  while value in producers and producers[value].name == "convert_element_type":
    [value] = producers[value].inputs
  source = producers.get(value)
  if source is None or source.name != "eq" or len(axes) != 1:
    return False
  [axis] = axes
  for numbers, indices in (source.inputs, source.inputs[::-1]):
    if not isinstance(numbers, int) or not isinstance(indices, int):
      continue
    if numbers not in fixed or not _repeats(indices, axis, producers):
      continue
    ordered = np.sort(_array(numbers, program, producers), axis)
    if (np.diff(ordered, axis=axis) != 0).all():
      return True
  return False


def _repeats(value, axis: int, producers) -> bool:
  """Returns whether a value is constant along an axis because it is broadcast there."""
  source = producers.get(value)
  if source is None or source.name != "broadcast_in_dim":
    return False
  dims = list(source.params["broadcast_dimensions"])
  if axis not in dims:
    return True
  shape = source.params["shape"]
  before = source.inputs[0]
  if before in producers and producers[before].name == "broadcast_in_dim":
    # This is `x[..., None]`, which adds the axis with size 1.
    inner = producers[before].params
    return inner["shape"][dims.index(axis)] == 1 and shape[axis] >= 1
  return False


def _fixed_values(program) -> set[int]:
  """Returns the values that depend on neither parameters nor inputs."""
  plain = lambda i: not jnp.issubdtype(program.dtypes[i], jax.dtypes.extended)
  found = {i for i in program.constants if plain(i)}
  for operation in program.operations:
    if operation.name != "scan" and found.issuperset(_program.operands(operation)):
      found.update(i for i in operation.outputs if plain(i))
  return found


def _array(value, program, producers) -> np.ndarray:
  """Computes a value that depends on neither parameters nor inputs."""
  if not isinstance(value, int):
    return np.asarray(value)
  if value in program.constants:
    return np.asarray(program.constants[value])
  operation = producers[value]
  arrays: list[Any] = [_array(i, program, producers) for i in operation.inputs]
  with jax.ensure_compile_time_eval():
    operands = [jnp.asarray(array) for array in arrays]
    outputs = operation.primitive.bind(*operands, **operation.params)
  several = operation.primitive.multiple_results
  return np.asarray(outputs[operation.outputs.index(value)] if several else outputs)


def nonzero(apply_fn, params, inputs, one: Program) -> dict[int, float]:
  """Counts multiply-adds of two nonzero factors, by the number of the product.

  The numbers are those of `one`, the program for one example: it has the same products
  in the same order, but values may be numbered differently.
  """
  program, _ = _program.trace(apply_fn, params, inputs)
  products = []

  def visit(operation, values):
    if operation.name not in _CONTRACTIONS:
      return None
    flags = [(value != 0).astype(jnp.float32) for value in values]
    p = {**operation.params, "preferred_element_type": jnp.dtype("float32")}
    # Each single count is exact in float32; sums over the whole array would not be.
    return operation.primitive.bind(*flags, **p).astype(jnp.int32).sum(-1)

  @jax.jit
  def run(leaves, inputs):
    seen = _program.evaluate(program, leaves, inputs, visit)[1]
    products[:] = [operation.name for operation, _ in seen]
    return [result for _, result in seen]

  examples = jax.tree.leaves(inputs)[0].shape[0]
  counts = run(jax.tree.leaves(params), jax.tree.leaves(inputs))
  totals = [int(np.sum(np.asarray(c), dtype=np.int64)) for c in counts]
  expected = list(_contractions(one))
  if [operation.name for operation in expected] != products:
    raise ValueError(
      "skip_zeros needs a function with the same products for every size of the batch, "
      f"got {len(expected)} for one example and {len(products)} for {examples}."
    )
  pairs = zip(expected, totals, strict=True)
  return {operation.outputs[0]: total / examples for operation, total in pairs}


def _contractions(program: Program) -> Iterator[Operation]:
  """Yields all products in the order of evaluation, those of loops once."""
  for operation in program.operations:
    if operation.name in _CONTRACTIONS:
      yield operation
    elif operation.name == "scan":
      yield from _contractions(operation.params["body"])


def _count_scan(operation, live, names, varies, times, found) -> None:
  """Counts the products of a loop; stacked kernels count with each layer's mask."""
  body, p = operation.params["body"], operation.params
  stacked = p["num_consts"] + p["num_carry"]
  inner_varies = _scan_varies(operation, varies)
  inner_names, fixed, slices = {}, {}, {}
  for k, (inner, outer) in enumerate(zip(body.inputs, operation.inputs, strict=True)):
    if inner in inner_varies or not isinstance(outer, int):
      continue
    inner_names[inner] = names.get(outer, ())
    if outer in live and k >= stacked:
      slices[inner] = live[outer]
    elif outer in live and k < p["num_consts"]:
      fixed[inner] = live[outer]
  repeats = p["length"] if not slices else 1
  for i in range(p["length"] if slices else 1):
    here = {**fixed, **{inner: flags[i] for inner, flags in slices.items()}}
    count(body, here, inner_names, inner_varies, times * repeats, found)


def _scan_varies(operation, varies) -> set[int]:
  """Returns the values of a loop's body that depend on inputs, in any iteration."""
  body, p = operation.params["body"], operation.params
  flags = [isinstance(i, int) and i in varies for i in operation.inputs]
  carry = slice(p["num_consts"], p["num_consts"] + p["num_carry"])
  while True:
    inner = _program.varying(body, flags)
    after = [isinstance(o, int) and o in inner for o in body.outputs[: p["num_carry"]]]
    merged = [a or b for a, b in zip(flags[carry], after, strict=True)]
    if merged == flags[carry]:
      return inner
    flags[carry] = merged


def _uses(operation, shapes, side: int | None) -> tuple[int, int]:
  """Returns how often each element of one operand is used, and the multiply-adds."""
  left, right = (
    shapes[i] if isinstance(i, int) else np.shape(i) for i in operation.inputs
  )
  out = math.prod(shapes[operation.outputs[0]])
  p = operation.params
  if operation.name == "dot_general":
    (contracted, _), _ = p["dimension_numbers"]
    whole = out * math.prod(left[axis] for axis in contracted)
    return whole // max(math.prod((left, right)[side or 0]), 1), whole
  features = right[p["dimension_numbers"].rhs_spec[0]]
  # Zeros inserted between pixels, as in a transposed convolution, are not multiplied.
  uses = out // features // math.prod(p["lhs_dilation"])
  whole = uses * math.prod(right)
  return (uses if side else whole // max(math.prod(left), 1)), whole
