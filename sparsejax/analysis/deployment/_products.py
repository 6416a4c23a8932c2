"""The products of a traced network that have constant kernels, as matrix products."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.analysis.jaxpr import Operation, Program, evaluate, varying
from sparsejax.core import PyTree, path_string

Array = jax.Array


class Product(NamedTuple):
  """A product of activations and a constant kernel, outside of loops.

  Attributes:
    operation: the operation, a `dot_general` without batch axes.
    side: which operand has the activations, 0 or 1.
    x_shape: the shape of the activations.
    kernel_shape: the shape of the kernel.
  """

  operation: Operation
  side: int
  x_shape: tuple[int, ...]
  kernel_shape: tuple[int, ...]

  @property
  def over(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of the activations and of the kernel that the product sums over."""
    contracted, _ = self.operation.params["dimension_numbers"]
    return contracted[self.side], contracted[1 - self.side]

  @property
  def shape(self) -> tuple[int, int]:
    """The (inputs, outputs) of the kernel as a matrix."""
    inputs = math.prod(self.kernel_shape[i] for i in self.over[1])
    return inputs, math.prod(self.kernel_shape) // max(inputs, 1)

  @property
  def rows(self) -> int:
    """The number of rows of the activations as a matrix."""
    return math.prod(self.x_shape) // max(self.shape[0], 1)

  def matrix(self, x: Array) -> Array:
    """Reshapes the activations to (rows, inputs)."""
    over, _ = self.over
    free = [i for i in range(x.ndim) if i not in over]
    return jnp.transpose(x, (*free, *over)).reshape(self.rows, self.shape[0])

  def kernel_matrix(self, kernel: Array) -> Array:
    """Reshapes the kernel to (inputs, outputs)."""
    _, over = self.over
    free = [i for i in range(kernel.ndim) if i not in over]
    return jnp.transpose(kernel, (*over, *free)).reshape(self.shape)

  def result(self, y: Array) -> Array:
    """Reshapes a matrix product (rows, outputs) to the operation's result."""
    x_over, over = self.over
    free = [n for i, n in enumerate(self.x_shape) if i not in x_over]
    others = [n for i, n in enumerate(self.kernel_shape) if i not in over]
    if self.side == 1:  # the kernel is the first operand: its axes come first
      return y.T.reshape(*others, *free)
    return y.reshape(*free, *others)


def find_products(program: Program) -> list[Product]:
  """Lists the matrix products of activations and constant kernels.

  Args:
    program: the traced network.

  Returns:
    The products in order. Those inside of loops, with batch axes, or of kernels that
    depend on the input are left out.
  """
  moving = varying(program)
  found = []
  for operation in program.operations:
    if operation.name != "dot_general" or any(operation.params["dimension_numbers"][1]):
      continue
    varies = [isinstance(i, int) and i in moving for i in operation.inputs]
    if sum(varies) != 1:
      continue
    side = varies.index(True)
    x, kernel = operation.inputs[side], operation.inputs[1 - side]
    if isinstance(kernel, int):  # an array if it is written into the program
      shapes = program.shapes
      found.append(Product(operation, side, shapes[x], shapes[kernel]))
  return found


def kernels_of(
  program: Program, params: PyTree, products: list[Product]
) -> list[tuple[str, np.ndarray]]:
  """Computes the kernels of products, by the operations on parameters alone.

  Args:
    program: the traced network.
    params: the parameters that it was traced with.
    products: the result of `find_products`.

  Returns:
    For each product the path of the parameter that its kernel was made from, and the
    kernel as a matrix (inputs, outputs).
  """
  moving = varying(program)
  still = [o for o in program.operations if not moving.intersection(o.outputs)]
  numbers = [p.operation.inputs[1 - p.side] for p in products]
  constant = program._replace(operations=tuple(still), outputs=tuple(numbers))
  nothing = [None] * len(program.inputs)
  arrays, _ = evaluate(constant, jax.tree.leaves(params), nothing)
  names = _names(program, params)
  return [
    (names.get(number, "constant"), np.asarray(product.kernel_matrix(array)))
    for number, product, array in zip(numbers, products, arrays, strict=True)
  ]


def _names(program: Program, params: PyTree) -> dict[int, str]:
  """Returns, for each value made from parameters, the path of the last of them."""
  flat = jax.tree_util.tree_leaves_with_path(params)
  names = {
    number: path_string(path)
    for number, (path, _) in zip(program.params, flat, strict=True)
  }
  for operation in program.operations:
    sources = [names[i] for i in operation.inputs if isinstance(i, int) and i in names]
    if sources:
      names.update(dict.fromkeys(operation.outputs, sources[-1]))
  return names
