"""The layers of a function: matrices that enter products, and their inputs."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.analysis.jaxpr import Operation, Program, operands


class Use(NamedTuple):
  """One product that a layer's weights enter.

  Attributes:
    output: the number of the product's output, which identifies the product.
    side: which operand is the kernel, 0 or 1.
    at: index of the operation, or of the loop around it, in the flat program.
  """

  output: int
  side: int
  at: int


class Layer(NamedTuple):
  """Weights that enter a product as a matrix of `outputs` rows and `inputs` columns.

  Attributes:
    name: the parameter's path, followed by `[i]` if the parameter contains several
      layers.
    leaf: the parameter's index in flattening order.
    shape: `(*spatial, inputs, outputs)`, or `(groups, inputs, outputs)` for a product
      with batch axes.
    groups: the number of parallel products, each with its own inputs; 1 for most
      layers.
    outputs: rows of each group's matrix.
    inputs: columns of each group's matrix: the number of products summed per output.
    uses: the products, in program order.
    view: how the matrix's elements are taken from the parameter.
  """

  name: str
  leaf: int
  shape: tuple[int, ...]
  groups: int
  outputs: int
  inputs: int
  uses: tuple[Use, ...]
  view: "View"

  @property
  def size(self) -> int:
    """The number of weights."""
    return self.groups * self.outputs * self.inputs

  def positions(self) -> np.ndarray:
    """Returns the position of each weight in the flattened parameter.

    Returns:
      int array `(groups, outputs, inputs)`.
    """
    return self.view.positions()


class Network(NamedTuple):
  """A flat program and its layers, in the order of the program."""

  program: Program
  layers: tuple[Layer, ...]
  varying: frozenset[int]  # values that depend on the inputs

  def segment(self, available: Iterable[int], targets: Sequence[int]) -> Program:
    """Extracts the part of the program that computes some values from others.

    Args:
      available: values that are known; those that are used become inputs.
      targets: the values to compute.

    Returns:
      A program from the parameters and the inputs to the targets.
    """
    return segment(self.program, available, targets)

  def live(self, at: int) -> tuple[int, ...]:
    """Returns the values computed before operation `at` and needed by later ones."""
    program = self.program
    before = set(program.inputs)
    for operation in program.operations[:at]:
      before.update(operation.outputs)
    needed = {out for out in program.outputs if isinstance(out, int)}
    for operation in program.operations[at:]:
      needed.update(operands(operation))
    return tuple(sorted(before & needed & self.varying))


class View(NamedTuple):
  """The moves by which a value's elements are taken from a parameter."""

  leaf: int
  shape: tuple[int, ...]  # of the value
  parent: "View | None" = None
  move: Callable[[np.ndarray], np.ndarray] | None = None
  factors: tuple[Any, ...] = ()  # by which all elements were multiplied or divided

  def positions(self) -> np.ndarray:
    chain, view = [], self
    while view.parent is not None and view.move is not None:
      chain.append(view.move)
      view = view.parent
    size = math.prod(view.shape)
    kind = np.int32 if size < 2**31 else np.int64
    array = np.arange(size, dtype=kind).reshape(view.shape)
    for step in reversed(chain):
      array = step(array)
    return array


def segment(program: Program, available: Iterable[int], targets: Sequence[int]):
  """Extracts the part of a program that computes some values from others.

  Args:
    program: a flat program.
    available: values that are known; those that are used become inputs.
    targets: the values to compute.

  Returns:
    A program from the parameters and the inputs to the targets.
  """
  available = set(available)
  needed, kept = set(targets) - available, []
  for operation in reversed(program.operations):
    if needed.intersection(operation.outputs):
      kept.append(operation)
      needed.update(i for i in operands(operation) if i not in available)
  used = {i for operation in kept for i in operands(operation)} | set(targets)
  constants = {i: c for i, c in program.constants.items() if i in used}
  return program._replace(
    operations=tuple(reversed(kept)),
    inputs=tuple(i for i in sorted(available) if i in used),
    outputs=tuple(targets),
    constants=constants,
  )


def matrix_view(
  operation: Operation, side: int, shape: tuple[int, ...]
) -> tuple[Callable[[Any], Any], tuple[int, ...]]:
  """Returns how a product uses its kernel as one matrix per group.

  Args:
    operation: a `dot_general` or a convolution.
    side: which operand is the kernel, 0 or 1.
    shape: the kernel's shape.

  Returns:
    A function from the kernel, a NumPy or JAX array, to `(groups, outputs, inputs)`,
    and the shape for distributions: `(*spatial, inputs, outputs)`, or
    `(groups, inputs, outputs)` for a `dot_general` with batch axes.
  """
  p = operation.params
  if operation.name == "dot_general":
    contracted, batch, free = _axes(operation, side, len(shape))
    order = (*batch, *free, *contracted)
    sizes = [math.prod(shape[a] for a in part) for part in (batch, free, contracted)]
    groups, outputs, inputs = sizes
    shape_in = (inputs, outputs) if not batch else (groups, inputs, outputs)
    return lambda k: k.transpose(order).reshape(sizes), shape_in
  out, into, *space = p["dimension_numbers"].rhs_spec
  groups = p["feature_group_count"]
  inputs = shape[into] * math.prod(shape[a] for a in space)
  sizes = (groups, shape[out] // groups, inputs)
  order = (out, *space, into)
  shape_in = (*(shape[a] for a in space), shape[into], shape[out])
  return lambda k: k.transpose(order).reshape(sizes), shape_in


def product_inputs(operation: Operation, side: int, values: Sequence[jax.Array]):
  """Returns the vectors by which a product multiplies its kernel.

  Args:
    operation: a `dot_general` or a convolution.
    side: which operand is the kernel, 0 or 1.
    values: the two operands.

  Returns:
    Float array `(groups, samples, inputs)`, in the order of `matrix_view`'s inputs.
  """
  x, kernel = values[1 - side], values[side]
  if operation.name == "dot_general":
    pairs, batches = operation.params["dimension_numbers"]
    order = _axes(operation, side, kernel.ndim)[0]
    contracted = tuple(pairs[1 - side][list(pairs[side]).index(a)] for a in order)
    batch = tuple(batches[1 - side])
    free = [a for a in range(x.ndim) if a not in contracted and a not in batch]
    sizes = [math.prod(x.shape[a] for a in part) for part in (batch, free, contracted)]
    return x.transpose(*batch, *free, *contracted).reshape(sizes)
  return _patches(operation, x, kernel)


def _axes(operation: Operation, side: int, rank: int):
  """Returns a kernel's contracted, batch and free axes; contracted ones are sorted."""
  contracted, batch = operation.params["dimension_numbers"]
  batch = tuple(batch[side])
  contracted = tuple(sorted(contracted[side]))
  free = tuple(a for a in range(rank) if a not in contracted and a not in batch)
  return contracted, batch, free


def _patches(operation: Operation, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Returns the image patches that a convolution multiplies, `(groups, samples, n)`.

  One strided slice is taken per tap of the kernel. On a CPU this is faster than
  `jax.lax.conv_general_dilated_patches`, a convolution with one-hot kernels.
  """
  # Bring the axes into the order (batch, channels, *spatial), then pad and dilate.
  p = operation.params
  numbers = p["dimension_numbers"]
  x = jnp.transpose(x, numbers.lhs_spec)
  taps = [kernel.shape[a] for a in numbers.rhs_spec[2:]]
  config = [
    (low, high, dilation - 1)
    for (low, high), dilation in zip(p["padding"], p["lhs_dilation"], strict=True)
  ]
  zero = jnp.zeros((), x.dtype)
  x = jax.lax.pad(x, zero, [(0, 0, 0), (0, 0, 0), *config])
  spread = p["rhs_dilation"]
  outs = [
    (size - (tap - 1) * wide - 1) // stride + 1
    for size, tap, wide, stride in zip(
      x.shape[2:], taps, spread, p["window_strides"], strict=True
    )
  ]
  # Slice the inputs of each tap of the kernel, for all output positions.
  slices = []
  for tap in np.ndindex(*taps):
    starts = [t * wide for t, wide in zip(tap, spread, strict=True)]
    limits = [
      s + (n - 1) * stride + 1
      for s, n, stride in zip(starts, outs, p["window_strides"], strict=True)
    ]
    slices.append(
      jax.lax.slice(
        x, (0, 0, *starts), (*x.shape[:2], *limits), (1, 1, *p["window_strides"])
      )
    )
  # Order each patch as (taps, channels of the group), with one row per output position.
  stacked = jnp.stack(slices)  # (taps, batch, channels, *outs)
  groups = p["feature_group_count"]
  count, images, channels = stacked.shape[:3]
  stacked = stacked.reshape(count, images, groups, channels // groups, math.prod(outs))
  stacked = stacked.transpose(2, 1, 4, 0, 3)
  return stacked.reshape(groups, -1, count * channels // groups)
