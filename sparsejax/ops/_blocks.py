"""The live blocks of a kernel, read from its zeros and their signs.

A block whose weights are all zero, of either sign, adds nothing to the product. It can
be skipped in the forward pass and in the gradient of the input. The gradient of the
block itself can be skipped only if all its weights are -0.0, which
`sparsejax.mark_dead` writes at masked weights. So a block of +0.0, whether masked or
just grown, gets its gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax.core import check_tuple

Array = jax.Array
_WORDS = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}


class BlockList(NamedTuple):
  """The list of blocks that a product visits, by column of blocks.

  Attributes:
    rows: int32 (blocks,), the row of each visited block, in order of columns and then
      of rows; zeros at the end.
    starts: int32 (output blocks + 1,), the index in `rows` of each column's first
      block.
    visited: int32, the number of blocks to visit in the forward pass.
    wanted: int32, the number of blocks that need a gradient of their weights.
  """

  rows: Array
  starts: Array
  visited: Array
  wanted: Array


def check_block(block: tuple[int, int]) -> tuple[int, int]:
  """Returns a block as a pair of integers, or raises TypeError or ValueError."""
  check_tuple("block", block, 2)
  return int(block[0]), int(block[1])


def live_blocks(kernel: Array, block: tuple[int, int]) -> Array:
  """Returns which blocks of a kernel have a weight other than -0.0.

  live[..., i, o] = any(bits(w) != bits(-0.0)) over the weights w of block (i, o)

  `block_dot` computes it if it is not given. It reads the whole kernel, so compute it
  once for a kernel that is used in many products.

  Args:
    kernel: floats (..., inputs, outputs), as `sparsejax.mark_dead` returns them.
    block: (bi, bo), inputs and outputs of one block; they divide the last two axes.

  Returns:
    bool (..., inputs / bi, outputs / bo).

  Raises:
    TypeError: `block` is not a pair of integers, or `kernel` is not floating point.
    ValueError: the block does not divide the kernel's last two axes.

  Example:
    >>> import jax.numpy as jnp
    >>> kernel = jnp.array([[1.0, 0.0, -0.0, -0.0], [2.0, 0.0, -0.0, -0.0]])
    >>> live_blocks(kernel, (2, 2))
    Array([[ True, False]], dtype=bool)
  """
  block = check_block(block)
  check_kernel(kernel, block)
  return _any_block(bits_of(kernel) != negative_zero(kernel), block)


def check_kernel(kernel: Array, block: tuple[int, int]) -> None:
  """Raises unless a kernel is floating point and the block divides its last axes."""
  if not (
    jnp.issubdtype(kernel.dtype, jnp.floating) and kernel.dtype.itemsize in _WORDS
  ):
    raise TypeError(
      f"kernel must be float16, bfloat16, float32 or float64, got {kernel.dtype.name}."
    )
  if kernel.ndim < 2 or kernel.shape[-2] % block[0] or kernel.shape[-1] % block[1]:
    raise ValueError(
      f"block must divide the kernel's last two axes, got {block} for a kernel of "
      f"shape {kernel.shape}."
    )


def bits_of(x: Array) -> Array:
  """Returns the bits of floats as unsigned integers."""
  return lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize])


def negative_zero(x: Array) -> Array:
  """Returns the bits of -0.0 in the dtype of x."""
  word = np.dtype(_WORDS[x.dtype.itemsize])
  return jnp.asarray(1 << (8 * word.itemsize - 1), word)


def _any_block(flags: Array, block: tuple[int, int]) -> Array:
  *lead, inputs, outputs = flags.shape
  cut = (*lead, inputs // block[0], block[0], outputs // block[1], block[1])
  return jnp.any(flags.reshape(cut), (-3, -1))


def list_blocks(
  kernel: Array, block: tuple[int, int], limit: int, live: Array | None
) -> BlockList:
  """Lists the blocks of a kernel (..., inputs, outputs) to visit, by column.

  Args:
    kernel: floats (..., inputs, outputs); its leading axes (the taps of a convolution)
      count as rows.
    block: (bi, bo), inputs and outputs of one block.
    limit: the largest number of blocks for the loop. If more blocks are live and `live`
      is None, the kernel is read a second time to leave out blocks of +0.0, which the
      forward pass can skip.
    live: the result of `live_blocks` for the kernel, or None to compute it.

  Returns:
    The list, with taps * input blocks as the number of rows.
  """
  wanted = live_blocks(kernel, block) if live is None else live
  wanted = wanted.reshape(-1, wanted.shape[-1])
  count = jnp.sum(wanted, dtype=jnp.int32)

  def nonzero():
    bits = bits_of(kernel)
    found = _any_block((bits << jnp.ones_like(bits)) != 0, block)
    return found.reshape(wanted.shape)

  # One list serves both passes if all blocks with a gradient fit into the limit.
  # Otherwise the weights' gradient is dense, and only nonzero blocks are listed.
  visit = (
    wanted if live is not None else lax.cond(count <= limit, lambda: wanted, nonzero)
  )
  rows, starts = list_by_column(visit)
  return BlockList(rows, starts, starts[-1], count)


def list_by_column(live: Array) -> tuple[Array, Array]:
  """Lists the rows of the live blocks of each column, column after column.

  Args:
    live: bool (rows, columns).

  Returns:
    int32 (rows * columns,), the row of each live block, then zeros; and int32
    (columns + 1,), the index of each column's first block in it.
  """
  per_column = jnp.sum(live, 0, dtype=jnp.int32)
  ends = jnp.cumsum(per_column, dtype=jnp.int32)
  # Writes the row of each live block to its index in the list. The other blocks get an
  # index past the end, which `mode="drop"` ignores.
  flat = live.T.reshape(-1)
  place = jnp.cumsum(flat, dtype=jnp.int32) - 1
  place = jnp.where(flat, place, jnp.int32(flat.size))
  row = jnp.tile(jnp.arange(live.shape[0], dtype=jnp.int32), live.shape[1])
  rows = jnp.zeros_like(place).at[place].set(row, mode="drop")
  return rows, jnp.concatenate([ends[:1] * 0, ends])
