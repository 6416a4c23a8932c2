"""Which blocks of a kernel are live, read from the signs of its zeros.

A block may be skipped in the forward pass and in the input's gradient where all its
weights are zero, whatever their signs: it adds nothing. Its own gradient may be skipped
only where all its weights are -0.0, which is what `sparsejax.mark_dead` writes at dead
weights. So a block of +0.0, dead or just grown, gets its gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax.core import check_tuple

Array = jax.Array
_WORDS = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}


class Plan(NamedTuple):
  """The blocks that a product visits, column by column.

  Attributes:
    rows: int32 (blocks,), the input block of each block to visit; columns in order,
      rows in order within a column, zeros at the end.
    starts: int32 (output blocks + 1,), where each column begins in `rows`.
    visited: int32, the number of blocks to visit in the forward pass.
    wanted: int32, the number of blocks whose weights' gradients are wanted.
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
  """Returns which blocks of a kernel hold anything but -0.0.

  live[..., i, o] = any(bits(w) != bits(-0.0)) over the weights w of block (i, o)

  What `block_dot` computes for itself when it is not given; it reads the whole kernel,
  so a kernel that serves many products may do it once.

  Args:
    kernel: floats (..., inputs, outputs), as `sparsejax.mark_dead` returns them.
    block: (bi, bo), inputs and outputs of one block; they divide the last two axes.

  Returns:
    bool (..., inputs / bi, outputs / bo).

  Raises:
    TypeError: block is not a pair of integers, or the kernel not floating point.
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
  """Raises unless a kernel is floating point and cut evenly by a block."""
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
  """The bits of floats as unsigned integers."""
  return lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize])


def negative_zero(x: Array) -> Array:
  """The bits of -0.0 in the dtype of x."""
  word = np.dtype(_WORDS[x.dtype.itemsize])
  return jnp.asarray(1 << (8 * word.itemsize - 1), word)


def _any_block(flags: Array, block: tuple[int, int]) -> Array:
  *lead, inputs, outputs = flags.shape
  cut = (*lead, inputs // block[0], block[0], outputs // block[1], block[1])
  return jnp.any(flags.reshape(cut), (-3, -1))


def plan(kernel: Array, block: tuple[int, int], limit: int, live: Array | None) -> Plan:
  """Lists the blocks of a kernel (..., inputs, outputs) to visit, column by column.

  Args:
    kernel: its leading axes (the taps of a convolution) count as rows.
    block: of its last two axes.
    limit: with more live blocks than that the kernel is read a second time, for
      blocks of +0.0, which need no visit in the forward pass.
    live: what `live_blocks` gives for the kernel, or None.

  Returns:
    The plan, of taps * input blocks rows.
  """
  wanted = live_blocks(kernel, block) if live is None else live
  wanted = wanted.reshape(-1, wanted.shape[-1])
  count = jnp.sum(wanted, dtype=jnp.int32)

  def nonzero():
    bits = bits_of(kernel)
    found = _any_block((bits << jnp.ones_like(bits)) != 0, block)
    return found.reshape(wanted.shape)

  visit = (
    wanted if live is not None else lax.cond(count <= limit, lambda: wanted, nonzero)
  )
  per_column = jnp.sum(visit, 0, dtype=jnp.int32)
  ends = jnp.cumsum(per_column, dtype=jnp.int32)
  # The place in the list of each live block; the others go past its end and are lost.
  flat = visit.T.reshape(-1)
  place = jnp.cumsum(flat, dtype=jnp.int32) - 1
  place = jnp.where(flat, place, jnp.int32(flat.size))
  row = jnp.tile(jnp.arange(visit.shape[0], dtype=jnp.int32), visit.shape[1])
  rows = jnp.zeros_like(place).at[place].set(row, mode="drop")
  starts = jnp.concatenate([ends[:1] * 0, ends])
  return Plan(rows, starts, ends[-1], count)
