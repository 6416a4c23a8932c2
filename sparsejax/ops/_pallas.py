"""Products with block-sparse kernels as Pallas kernels, for GPUs and TPUs.

Each program instance computes one tile of the output, and loops over the live blocks
that contribute to it. The forward pass and the gradient of x are one kernel: the first
reads the list of live blocks by column, the second by row. On a CPU the kernels run in
Pallas' interpret mode, for tests.

GPU kernels are lowered through Triton and read the blocks by dynamic slices. TPU
kernels prefetch the list of blocks into scalar memory, where the index maps of the
pipeline read it; the last axis of their grid is as long as the longest list.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton

from sparsejax.ops._blocks import list_by_column

Array = jax.Array

# Rows of x per program instance, at most; fewer if x has fewer.
_ROWS = 128
# The least side of a tile of a product on tensor cores, and of a tile on TPUs, where
# products with smaller blocks are dense.
_LEAST = 16
_LEAST_TPU = 128


def unsupported(block: tuple[int, int], *dtypes: Any) -> str:
  """Returns why the kernels do not apply to a block and dtypes, or else ""."""
  if any(side < _LEAST or side & (side - 1) for side in block):
    return f"Pallas kernels need blocks with sides of 2^n >= {_LEAST}"
  if any(jnp.dtype(dtype).itemsize > 4 for dtype in dtypes):
    return "Pallas kernels do not support float64"
  return ""


def product(
  x: Array,
  kernel: Array,
  live: Array,
  block: tuple[int, int],
  *,
  transposed: bool,
  precision: Any,
  out_dtype: Any,
) -> Array:
  """Multiplies by a block-sparse kernel, or by its transpose.

  y[:, o] = sum over live (i, o) of x[:, i] @ kernel[i, o]

  Args:
    x: floats (rows, inputs); (rows, outputs) if `transposed`.
    kernel: floats (inputs, outputs).
    live: bool (input blocks, output blocks).
    block: inputs and outputs of one block.
    transposed: whether to multiply by the transposed kernel.
    precision: as in `jax.lax.dot_general`.
    out_dtype: the dtype of the result; sums are float32.

  Returns:
    Array (rows, outputs); (rows, inputs) if `transposed`.
  """
  rows = x.shape[0]
  tile = _row_tile(rows)
  x = _pad_rows(x, tile)
  listed = list_by_column(live.T if transposed else live)
  call = functools.partial(_product_call, block, tile, transposed, precision, out_dtype)
  y = _on_each_platform(call, *listed, x, kernel)
  return y[:rows]


def weight_gradient(
  x: Array, dy: Array, live: Array, block: tuple[int, int], precision: Any
) -> Array:
  """Computes the gradient of the live blocks of a kernel; the others get zeros.

  dw[i, o] = x[:, i]^T @ dy[:, o] if live[i, o] else 0

  Args:
    x: floats (rows, inputs).
    dy: floats (rows, outputs).
    live: bool (input blocks, output blocks).
    block: inputs and outputs of one block.
    precision: as in `jax.lax.dot_general`.

  Returns:
    Array (inputs, outputs), of the dtype of dy.
  """
  tile = _row_tile(x.shape[0])
  x, dy = _pad_rows(x, tile), _pad_rows(dy, tile)
  call = functools.partial(_gradient_call, block, tile, precision)
  return _on_each_platform(call, live.astype(jnp.int32).reshape(-1), x, dy)


def _on_each_platform(call: Callable[..., Array], *args: Array) -> Array:
  """Calls `call(platform, *args)` for the platform that the program is lowered for."""
  return lax.platform_dependent(
    *args,
    cuda=functools.partial(call, "cuda"),
    tpu=functools.partial(call, "tpu"),
    default=functools.partial(call, "interpret"),
  )


def _row_tile(rows: int) -> int:
  """Returns the rows per program instance: a power of two from 16 to 128."""
  return min(_ROWS, max(_LEAST, 1 << (rows - 1).bit_length()))


def _pad_rows(x: Array, tile: int) -> Array:
  return jnp.pad(x, ((0, -x.shape[0] % tile), (0, 0)))


def _varying(x: Array) -> Any:
  """Returns over which mesh axes of a `shard_map` an array varies."""
  return jax.typeof(x).manual_axis_type


def _params(platform: str) -> dict[str, Any]:
  """Returns the arguments of `pallas_call` that depend on the platform."""
  if platform == "cuda":
    return {"compiler_params": triton.CompilerParams(num_warps=8, num_stages=3)}
  return {"interpret": platform == "interpret"}


def _dot(a: Array, b: Array, over: tuple[int, int], precision: Any) -> Array:
  return lax.dot_general(
    a,
    b,
    (((over[0],), (over[1],)), ((), ())),
    precision=precision,
    preferred_element_type=jnp.float32,
  )


# --- The product.


def _product_call(
  block, tile, transposed, precision, out_dtype, platform, indices, starts, x, w
):
  """Builds the call of the forward kernel for one platform."""
  # `take` is the width of the tiles of x, `give` that of the tiles of the output.
  take, give = block[::-1] if transposed else block
  over = (1, 1) if transposed else (1, 0)
  width = w.shape[0 if transposed else 1]
  grid = (x.shape[0] // tile, width // give)
  out = jax.ShapeDtypeStruct(
    (x.shape[0], width), out_dtype, manual_axis_type=_varying(x)
  )

  if platform == "tpu" and min(block) < _LEAST_TPU:
    y = _dot(x, w, over, precision)
    return y.astype(out_dtype)

  def kernel_block(i, o):
    """Returns the coordinates of the kernel's block from x-tile i to output tile o."""
    return (o, i) if transposed else (i, o)

  if platform != "tpu":

    def program(indices, starts, x, w, y):
      m, o = pl.program_id(0), pl.program_id(1)

      def add(k, total):
        i = indices[k]
        a, b = kernel_block(i, o)
        part = x[pl.ds(m * tile, tile), pl.ds(i * take, take)]
        weights = w[pl.ds(a * block[0], block[0]), pl.ds(b * block[1], block[1])]
        return total + _dot(part, weights, over, precision)

      total = lax.fori_loop(
        starts[o], starts[o + 1], add, jnp.zeros((tile, give), jnp.float32)
      )
      y[pl.ds(m * tile, tile), pl.ds(o * give, give)] = total.astype(y.dtype)

    call = pl.pallas_call(program, out, grid=grid, **_params(platform))
    return call(indices, starts, x, w)

  # The pipeline copies tiles by index maps. Past the end of a list the maps repeat its
  # last entry, so that nothing is copied again.
  def entry(o, k, indices, starts):
    return indices[jnp.minimum(starts[o] + k, jnp.maximum(starts[o + 1] - 1, 0))]

  def accumulate(indices, starts, x, w, y, total):
    o, k = pl.program_id(1), pl.program_id(2)

    @pl.when(k == 0)
    def _():
      total[...] = jnp.zeros_like(total)

    @pl.when(k < starts[o + 1] - starts[o])
    def _():
      total[...] += _dot(x[...], w[...], over, precision)

    @pl.when(k == pl.num_programs(2) - 1)
    def _():
      y[...] = total[...].astype(y.dtype)

  longest = jnp.maximum(jnp.max(starts[1:] - starts[:-1]), 1)
  spec = pltpu.PrefetchScalarGridSpec(
    num_scalar_prefetch=2,
    grid=(*grid, longest),
    in_specs=[
      pl.BlockSpec((tile, take), lambda m, o, k, *lists: (m, entry(o, k, *lists))),
      pl.BlockSpec(block, lambda m, o, k, *lists: kernel_block(entry(o, k, *lists), o)),
    ],
    out_specs=pl.BlockSpec((tile, give), lambda m, o, k, *lists: (m, o)),
    scratch_shapes=[pltpu.VMEM((tile, give), jnp.float32)],
  )
  call = pl.pallas_call(accumulate, out, grid_spec=spec)
  return call(indices, starts, x, w)


# --- The gradient of the kernel.


def _gradient_call(block, tile, precision, platform, live, x, dy):
  """Builds the call of the kernel of the weights' gradient for one platform."""
  bi, bo = block
  inputs, outputs = x.shape[1], dy.shape[1]
  grid = (inputs // bi, outputs // bo)
  steps = x.shape[0] // tile
  out = jax.ShapeDtypeStruct((inputs, outputs), dy.dtype, manual_axis_type=_varying(x))

  if platform == "tpu" and min(block) < _LEAST_TPU:
    dw = _dot(x, dy, (0, 0), precision).astype(dy.dtype)
    kept = live.reshape(grid) != 0
    for axis, side in enumerate(block):
      kept = jnp.repeat(kept, side, axis)
    return jnp.where(kept, dw, jnp.zeros_like(dw))

  if platform != "tpu":

    def program(live, x, dy, dw):
      i, o = pl.program_id(0), pl.program_id(1)

      def add(k, total):
        part = x[pl.ds(k * tile, tile), pl.ds(i * bi, bi)]
        slope = dy[pl.ds(k * tile, tile), pl.ds(o * bo, bo)]
        return total + _dot(part, slope, (0, 0), precision)

      # A dead block has no steps, so its program only writes zeros.
      end = live[i * grid[1] + o] * jnp.int32(steps)
      total = lax.fori_loop(jnp.int32(0), end, add, jnp.zeros(block, jnp.float32))
      dw[pl.ds(i * bi, bi), pl.ds(o * bo, bo)] = total.astype(dw.dtype)

    call = pl.pallas_call(program, out, grid=grid, **_params(platform))
    return call(live, x, dy)

  def accumulate(live, x, dy, dw, total):
    i, o, k = (pl.program_id(axis) for axis in range(3))

    @pl.when(k == 0)
    def _():
      total[...] = jnp.zeros_like(total)

    @pl.when(live[i * grid[1] + o] != 0)
    def _():
      total[...] += _dot(x[...], dy[...], (0, 0), precision)

    @pl.when(k == steps - 1)
    def _():
      dw[...] = total[...].astype(dw.dtype)

  # A dead block reads the first tile again and again, so that nothing is copied.
  def step(i, o, k, live):
    return k * live[i * grid[1] + o]

  spec = pltpu.PrefetchScalarGridSpec(
    num_scalar_prefetch=1,
    grid=(*grid, steps),
    in_specs=[
      pl.BlockSpec((tile, bi), lambda i, o, k, live: (step(i, o, k, live), i)),
      pl.BlockSpec((tile, bo), lambda i, o, k, live: (step(i, o, k, live), o)),
    ],
    out_specs=pl.BlockSpec(block, lambda i, o, k, live: (i, o)),
    scratch_shapes=[pltpu.VMEM(block, jnp.float32)],
  )
  return pl.pallas_call(accumulate, out, grid_spec=spec)(live, x, dy)
