"""A product as a loop over the live blocks of a kernel, with its derivatives.

Matrix products and convolutions differ only in the part of x that is multiplied by a
block of the kernel: for a matrix product it is columns of x, for a convolution the
window of one tap. All else, from the choice of the path to the second derivative, is
common.
"""

import functools
import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import AxisType, PartitionSpec

from sparsejax.ops import _record
from sparsejax.ops._blocks import BlockList, list_blocks

Array = jax.Array
_FIRST = np.int32(0)


class Window(NamedTuple):
  """The window parameters of a convolution of x, which is already padded.

  Attributes:
    kernel: number of taps along each spatial axis.
    strides: steps of the window along each spatial axis.
    dilation: distances of the kernel's taps along each spatial axis.
    out: sizes of the output's spatial axes.
  """

  kernel: tuple[int, ...]
  strides: tuple[int, ...]
  dilation: tuple[int, ...]
  out: tuple[int, ...]


class Static(NamedTuple):
  """The static parameters of a product.

  Attributes:
    block: inputs and outputs of one block.
    limit: the largest number of live blocks for which the loop is used.
    x_shape: (rows, inputs), or (n, *spatial, channels) for a convolution.
    precision: as in `jax.lax.dot_general`.
    out_dtype: the dtype of the output.
    sum_dtype: the dtype of the sums in the loop.
    window: the `Window` of a convolution; None for a matrix product.
    pallas: whether Pallas kernels take the place of the loop. The loop is used on CPUs
      only, the Pallas kernels on every platform.
  """

  block: tuple[int, int]
  limit: int
  x_shape: tuple[int, ...]
  precision: Any
  out_dtype: Any
  sum_dtype: Any
  window: Window | None = None
  pallas: bool = False

  @property
  def rows(self) -> int:
    """The number of rows of the output as a matrix (rows, outputs)."""
    return self.x_shape[0] * math.prod(self.window.out if self.window else ())


def product(static: Static, x: Array, kernel: Array, live: Array | None) -> Array:
  """Multiplies x by a kernel (taps * inputs, outputs); returns (rows, outputs)."""
  x, kernel = _varying_together(x, _gathered(kernel))
  return _product(static, x, kernel, _list_blocks(static, kernel, live))


def sharded(x: Array, kernel: Array) -> str:
  """Returns a message if an operand is sharded over explicit axes, or else ""."""
  for name, value in (("x", x), ("kernel", kernel)):
    sharding = getattr(jax.typeof(value), "sharding", None)
    if sharding is not None and any(axis is not None for axis in sharding.spec):
      return f"{name} is sharded over explicit mesh axes; use shard_map"
  return ""


# --- Sharding.


def _varying_together(*arrays: Array) -> tuple[Array, ...]:
  """Casts arrays in `shard_map` to vary over the same mesh axes, those of any of them.

  The transpose of the cast sums the gradient of a replicated kernel over the devices.
  """
  axes = [_varying_axes(x) for x in arrays]
  every = frozenset().union(*axes)
  return tuple(
    lax.pcast(x, tuple(sorted(every - own)), to="varying") if every - own else x
    for x, own in zip(arrays, axes, strict=True)
  )


def _varying_axes(x: Array) -> frozenset[str]:
  return jax.typeof(x).manual_axis_type.varying


def _gathered(kernel: Array) -> Array:
  """Replicates a kernel on every device, if a mesh of automatic axes is set.

  Otherwise the compiler would gather the kernel again for each block.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or any(kind != AxisType.Auto for kind in mesh.axis_types):
    return kernel
  return lax.with_sharding_constraint(kernel, PartitionSpec())


def _zeros(shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
  """Makes zeros that vary over the same mesh axes of a `shard_map` as another array."""
  out = jnp.zeros(shape, dtype)
  axes = tuple(sorted(_varying_axes(like)))
  return lax.pcast(out, axes, to="varying") if axes else out


# --- The part of x that is multiplied by a row of blocks.


def _place(static: Static, row: Array):
  """Returns the start of the part in x, and its shape before striding."""
  # For a convolution, a row of blocks is one tap and one block of input channels. The
  # tap's indices along the spatial axes, times the dilations, are the start.
  window, bi = static.window, static.block[0]
  if window is None:
    return (_FIRST, row * bi), (static.x_shape[0], bi)
  channels = static.x_shape[-1] // bi
  tap, channel = row // channels, row % channels
  starts = []
  for taps, dilation in zip(window.kernel[::-1], window.dilation[::-1], strict=True):
    starts.insert(0, tap % taps * dilation)
    tap = tap // taps
  spans = [(n - 1) * s + 1 for n, s in zip(window.out, window.strides, strict=True)]
  return (_FIRST, *starts, channel * bi), (static.x_shape[0], *spans, bi)


def _strided(static: Static, part: Array) -> Array:
  """Applies the strides of a convolution to a part of x."""
  if static.window is None or max(static.window.strides) == 1:
    return part
  return lax.slice(part, (0,) * part.ndim, part.shape, (1, *static.window.strides, 1))


def _take(static: Static, x: Array, row: Array) -> Array:
  """Takes the part of x that is multiplied by a row of blocks, as (rows, bi)."""
  start, shape = _place(static, row)
  part = _strided(static, lax.dynamic_slice(x, start, shape))
  return part.reshape(static.rows, static.block[0])


def _add(static: Static, x: Array, row: Array, more: Array) -> Array:
  """Adds an array (rows, bi) to the part of x that `_take` returns."""
  # For a strided window, the array is spread out with zeros between its entries.
  start, shape = _place(static, row)
  part = lax.dynamic_slice(x, start, shape)
  if static.window is None:
    return lax.dynamic_update_slice(x, part + more, start)
  more = more.reshape(_strided(static, part).shape)
  if max(static.window.strides) > 1:
    apart = [(0, 0, s - 1) for s in (1, *static.window.strides, 1)]
    more = lax.pad(more, np.zeros((), more.dtype), apart)
  return lax.dynamic_update_slice(x, part + more, start)


# --- The dense product and the loop over blocks.


def _dense(static: Static, x: Array, kernel: Array) -> Array:
  """Computes the product densely; returns (rows, outputs)."""
  window = static.window
  if window is None:
    return lax.dot_general(
      x,
      kernel,
      (((1,), (0,)), ((), ())),
      precision=static.precision,
      preferred_element_type=static.out_dtype,
    )
  n = len(window.kernel)
  channels_last = (0, n + 1, *range(1, n + 1))
  y = lax.conv_general_dilated(
    x,
    kernel.reshape(*window.kernel, x.shape[-1], kernel.shape[1]),
    window.strides,
    "VALID",
    rhs_dilation=window.dilation,
    dimension_numbers=lax.ConvDimensionNumbers(
      channels_last, (n + 1, n, *range(n)), channels_last
    ),
    precision=static.precision,
  )
  return y.reshape(static.rows, kernel.shape[1])


def _dense_gradients(static: Static, asked: tuple[bool, bool], x, kernel, dy):
  """Computes the gradients of x and kernel by dense products, None if not asked for."""
  shape = (_kernel_inputs(static), dy.shape[1])
  dtype = dy.dtype

  # The transpose of a function that is linear in an argument of the given shape.
  def transposed(function, shape):
    like = _zeros(shape, dtype, dy) if _varying_axes(dy) else None
    like = jax.ShapeDtypeStruct(shape, dtype) if like is None else jax.typeof(like)
    return jax.linear_transpose(function, like)(dy.astype(static.out_dtype))[0]

  dx = dw = None
  if static.window is None:
    dot = functools.partial(
      lax.dot_general, precision=static.precision, preferred_element_type=dtype
    )
    dx = dot(dy, kernel, (((1,), (1,)), ((), ()))) if asked[0] else None
    dw = dot(x, dy, (((0,), (0,)), ((), ()))) if asked[1] else None
    return dx, dw
  if asked[0]:
    dx = transposed(lambda x: _dense(static, x, kernel), static.x_shape)
  if asked[1]:
    dw = transposed(lambda kernel: _dense(static, x, kernel), shape)
  return dx, dw


def _kernel_inputs(static: Static) -> int:
  """Returns the number of rows of the kernel as a matrix: taps times inputs."""
  taps = math.prod(static.window.kernel) if static.window else 1
  return static.x_shape[-1] * taps


def _dot(static: Static, a: Array, b: Array, over: tuple[int, int]) -> Array:
  """Multiplies two blocks, contracting one axis of each, in the dtype of the sums."""
  return lax.dot_general(
    a,
    b,
    (((over[0],), (over[1],)), ((), ())),
    precision=static.precision,
    preferred_element_type=static.sum_dtype,
  )


def _visit_forward(static: Static, x: Array, kernel: Array, found: BlockList) -> Array:
  """Computes the output one column of blocks at a time, from its live blocks."""
  bi, bo = static.block
  columns = kernel.shape[1] // bo

  def column(o, y):
    def add(k, total):
      row = found.rows[k]
      weights = lax.dynamic_slice(kernel, (row * bi, o * bo), (bi, bo))
      return total + _dot(static, _take(static, x, row), weights, (1, 0))

    total = _zeros((static.rows, bo), static.sum_dtype, x)
    total = lax.fori_loop(found.starts[o], found.starts[o + 1], add, total)
    return lax.dynamic_update_slice(y, total.astype(y.dtype), (_FIRST, o * bo))

  y = _zeros((static.rows, kernel.shape[1]), static.out_dtype, x)
  return lax.fori_loop(jnp.int32(0), jnp.int32(columns), column, y)


def _visit_backward(static: Static, asked: tuple[bool, bool], x, kernel, dy, found):
  """Computes the gradients of x and kernel by the loop, None if not asked for."""
  bi, bo = static.block
  columns = dy.shape[1] // bo

  def column(o, grads):
    d = lax.dynamic_slice(dy, (_FIRST, o * bo), (static.rows, bo))

    # Adds the block's part to dx, and writes its own gradient to dw.
    def visit(k, grads):
      row, (dx, dw) = found.rows[k], grads
      if dx is not None:
        weights = lax.dynamic_slice(kernel, (row * bi, o * bo), (bi, bo))
        dx = _add(static, dx, row, _dot(static, d, weights, (1, 1)))
      if dw is not None:
        one = _dot(static, _take(static, x, row), d, (0, 0)).astype(dw.dtype)
        dw = lax.dynamic_update_slice(dw, one, (row * bi, o * bo))
      return dx, dw

    return lax.fori_loop(found.starts[o], found.starts[o + 1], visit, grads)

  shape = (_kernel_inputs(static), dy.shape[1])
  dx = _zeros(static.x_shape, static.sum_dtype, dy) if asked[0] else None
  dw = _zeros(shape, dy.dtype, dy) if asked[1] else None
  dx, dw = lax.fori_loop(jnp.int32(0), jnp.int32(columns), column, (dx, dw))
  return dx if dx is None else dx.astype(dy.dtype), dw


# --- The same by Pallas kernels.


def _pallas_forward(static: Static, x: Array, kernel: Array, found: BlockList) -> Array:
  """Computes the output by a Pallas kernel."""
  from sparsejax.ops import _pallas  # Pallas takes long to import

  return _pallas.product(
    x,
    kernel,
    _visited_blocks(found),
    static.block,
    transposed=False,
    precision=static.precision,
    out_dtype=static.out_dtype,
  )


def _pallas_backward(static: Static, asked: tuple[bool, bool], x, kernel, dy, found):
  """Computes the gradients of x and kernel by Pallas kernels, None if not asked for."""
  from sparsejax.ops import _pallas

  live = _visited_blocks(found)
  dx = dw = None
  if asked[0]:
    dx = _pallas.product(
      dy,
      kernel,
      live,
      static.block,
      transposed=True,
      precision=static.precision,
      out_dtype=dy.dtype,
    )
  if asked[1]:
    dw = _pallas.weight_gradient(x, dy, live, static.block, static.precision)
  return dx, dw


# --- The choice between them, by platform and by the number of live blocks.


def _list_blocks(static: Static, kernel: Array, live: Array | None) -> BlockList:
  """Returns the list of blocks of a kernel.

  Without Pallas kernels, the product is dense on all platforms but the CPU. There the
  list counts all blocks as visited and wanted, and lists none.
  """
  kernel = lax.stop_gradient(kernel)

  def read(kernel, *live):
    found = list_blocks(kernel, static.block, static.limit, live[0] if live else None)
    _record.sparse(kernel.shape, static.block, found, static.limit)
    return found

  def nothing(kernel, *live):
    columns = kernel.shape[1] // static.block[1]
    blocks = kernel.shape[0] // static.block[0] * columns
    number = _zeros((), jnp.int32, kernel) + jnp.int32(blocks)
    starts = _zeros((columns + 1,), jnp.int32, kernel)
    return BlockList(_zeros((blocks,), jnp.int32, kernel), starts, number, number)

  args = (kernel,) if live is None else (kernel, live)
  if static.pallas:
    return read(*args)
  return lax.platform_dependent(*args, cpu=read, default=nothing)


def _forward(static: Static, x: Array, kernel: Array, found: BlockList) -> Array:
  """Computes the product by the faster way."""

  def densely():
    return _dense(static, x, kernel)

  visit = _pallas_forward if static.pallas else _visit_forward

  def choose():
    by_blocks = lambda: visit(static, x, kernel, found)
    return lax.cond(found.visited <= static.limit, by_blocks, densely)

  if static.pallas:
    return choose()
  return lax.platform_dependent(cpu=choose, default=densely)


def _backward(static: Static, asked: tuple[bool, bool], x, kernel, dy, found):
  """Computes the gradients that are asked for, each by the faster way."""

  def densely():
    return _dense_gradients(static, asked, x, kernel, dy)

  visit = _pallas_backward if static.pallas else _visit_backward

  def by_blocks():
    return visit(static, asked, x, kernel, dy, found)

  def x_by_blocks():
    dx, _ = visit(static, (True, False), x, kernel, dy, found)
    return dx, _dense_gradients(static, (False, True), x, kernel, dy)[1]

  # `few`: the loop is faster for the blocks that the forward pass visits, and so for
  # dx. `all_few`: also for all blocks that need a gradient, and so for dw.
  def choose():
    few, all_few = found.visited <= static.limit, found.wanted <= static.limit
    if not asked[0]:
      return lax.cond(all_few, by_blocks, densely)
    if not asked[1]:
      return lax.cond(few, by_blocks, densely)
    rest = lambda: lax.cond(few, x_by_blocks, densely)
    return lax.cond(all_few, by_blocks, rest)

  if static.pallas:
    return choose()
  return lax.platform_dependent(cpu=choose, default=densely)


# --- Derivatives.


# The loop has no reverse-mode derivative, so the gradients have a rule of their own.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gradients(static: Static, asked: tuple[bool, bool], x, kernel, dy, found):
  return _backward(static, asked, x, kernel, dy, found)


def _gradients_fwd(static, asked, x, kernel, dy, found):
  # Calls `_gradients`, so that its derivative follows the same rule again.
  out = _gradients(static, asked, x, kernel, dy, found)
  return out, (x, kernel, dy, found)


def _gradients_bwd(static, asked, residuals, cotangents):
  x, kernel, dy, found = residuals
  cx, cw = cotangents
  if cw is not None:
    # The gradient of a skipped block is constantly zero, so its cotangent is dropped.
    # Nothing was skipped if the gradient of the kernel was dense.
    kept = _visited_blocks(found) | (found.wanted > static.limit)
    for axis, n in enumerate(static.block):
      kept = jnp.repeat(kept, n, axis)
    cw = jnp.where(kept, cw, jnp.zeros_like(cw))

  def dense(x, kernel, dy):
    return _dense_gradients(static, asked, x, kernel, dy)

  _, pull = jax.vjp(dense, x, kernel, dy)
  return (*cast("tuple[Any, ...]", pull((cx, cw))), None)


_gradients.defvjp(_gradients_fwd, _gradients_bwd)


def _visited_blocks(found: BlockList) -> Array:
  """Returns a bool array (rows of blocks, columns), True at the blocks of a list."""
  columns = found.starts.size - 1
  shape = (found.rows.size // columns, columns)
  k = jnp.arange(found.rows.size, dtype=jnp.int32)
  column = jnp.sum(k[:, None] >= found.starts[None, 1:], 1, dtype=jnp.int32)
  row = jnp.where(k < found.visited, found.rows, jnp.int32(shape[0]))
  return jnp.zeros(shape, bool).at[row, column].set(True, mode="drop")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(static: Static, x: Array, kernel: Array, found: BlockList) -> Array:
  return _forward(static, x, kernel, found)


def _product_fwd(static, x, kernel, found):
  # With `symbolic_zeros`, arguments come with a flag that says whether their gradient
  # is needed.
  found = jax.tree.map(lambda primal: primal.value, found)
  y = _product(static, x.value, kernel.value, found)
  # The gradient of x needs the kernel, that of the kernel needs x.
  return y, (
    x.value if kernel.perturbed else None,
    kernel.value if x.perturbed else None,
    found,
  )


def _product_bwd(static, residuals, dy):
  x, kernel, found = residuals
  if isinstance(dy, SymbolicZero):
    return None, None, None
  asked = (kernel is not None, x is not None)
  dtype = x.dtype if kernel is None else kernel.dtype
  out = _gradients(static, asked, x, kernel, dy.astype(dtype), found)
  dx, dw = cast("tuple[Any, Any]", out)
  return dx, dw, None


_product.defvjp(_product_fwd, _product_bwd, symbolic_zeros=True)
