"""Convolutions with block-sparse kernels; the cost is that of the live blocks."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax.ops import _record
from sparsejax.ops._blocks import check_block
from sparsejax.ops._share import live_share
from sparsejax.ops._visit import Static, Window, product, sharded

Array = jax.Array


def block_conv_general_dilated(block: tuple[int, int]) -> Callable[..., Array]:
  """Returns a `jax.lax.conv_general_dilated` that skips a kernel's dead blocks.

  y[n, p, o] = sum over live (t, i, o) of x[n, stride p + dilation t, i] @ w[t, i, o]

  with t the taps, and i and o blocks of input and output channels. Use it for the
  argument `conv_general_dilated=` of `flax.linen.Conv` and `flax.nnx.Conv`, with
  kernels that have the structure `sparsejax.block((bi, bo))`. It is exact and
  differentiable, and chooses between blocks and the dense product as
  `sparsejax.ops.block_dot` does. It supports all strides, paddings and kernel
  dilations. The convolution is dense for groups, dilated inputs, negative padding, axes
  in another order than flax's (channels last), and channels that the block does not
  divide.

  Args:
    block: (bi, bo), input and output channels of one block.

  Returns:
    A function with the arguments of `jax.lax.conv_general_dilated`.

  Raises:
    TypeError: block is not a pair of integers.
    ValueError: a side of the block is below 1.

  Example:
    >>> import flax.linen as nn, jax, jax.numpy as jnp, sparsejax as sj
    >>> conv = sj.block_conv_general_dilated((64, 64))
    >>> layer = nn.Conv(64, (3, 3), conv_general_dilated=conv)
    >>> x = jnp.ones((2, 8, 8, 64))
    >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
    (2, 8, 8, 64)
  """
  block = check_block(block)

  def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    **keywords: Any,
  ) -> Array:
    # The reason for a dense convolution, if there is one.
    keywords = {name: value for name, value in keywords.items() if value is not None}
    n = rhs.ndim - 2
    dilation = tuple(rhs_dilation or (1,) * n)
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    channels_last = (0, n + 1, *range(1, n + 1))
    reason, pads, share = "", (), 0.0
    if numbers != (channels_last, (n + 1, n, *range(n)), channels_last) or n < 1:
      reason = "channels are not last"
    elif feature_group_count != 1 or batch_group_count != 1:
      reason = "it has groups"
    elif lhs_dilation is not None and set(lhs_dilation) != {1}:
      reason = "its input is dilated"
    elif keywords:
      reason = f"{', '.join(sorted(keywords))} is given"
    elif not (jnp.issubdtype(rhs.dtype, jnp.floating) and rhs.dtype.itemsize > 1):
      reason = f"the kernel is {rhs.dtype.name}"
    elif lhs.dtype != rhs.dtype or preferred_element_type not in (None, rhs.dtype):
      reason = "the dtypes differ"
    elif rhs.shape[-2] % block[0] or rhs.shape[-1] % block[1] or not rhs.size:
      reason = "the block does not divide the kernel's channels"
    elif not (reason := sharded(lhs, rhs)):
      # The size of the output follows from the extent of the dilated kernel and the
      # padding; one of its positions is one row of the product.
      reach = [(k - 1) * d + 1 for k, d in zip(rhs.shape[:n], dilation, strict=True)]
      if isinstance(padding, str):
        pads = lax.padtype_to_pads(lhs.shape[1:-1], reach, window_strides, padding)
      else:
        pads = tuple(tuple(pair) for pair in padding)
      padded = [s + a + b for s, (a, b) in zip(lhs.shape[1:-1], pads, strict=True)]
      out = tuple(
        (s - r) // step + 1
        for s, r, step in zip(padded, reach, window_strides, strict=True)
      )
      rows = lhs.shape[0] * math.prod(max(o, 0) for o in out)
      share = live_share(
        rows, (math.prod(rhs.shape[:-1]), rhs.shape[-1]), block, rhs.dtype.itemsize
      )
      if min(min(pair) for pair in pads) < 0:
        reason = "its padding is negative"
      elif min(out) < 1 or not lhs.size:
        reason = "its output is empty"
      elif not share:
        reason = "the block or the batch is too small to gain"
    if reason:
      _record.dense(rhs.shape, block, reason)
      return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        **keywords,
      )
    # Pads the input, so that the loop over blocks only has to take windows from it. The
    # kernel becomes a matrix (taps * input channels, output channels).
    x = lax.pad(
      lhs,
      np.zeros((), lhs.dtype),
      [(0, 0, 0), *((a, b, 0) for a, b in pads), (0, 0, 0)],
    )
    kernel = rhs.reshape(-1, rhs.shape[-1])
    blocks = kernel.size // (block[0] * block[1])
    static = Static(
      block=block,
      limit=int(share * blocks),
      x_shape=x.shape,
      precision=precision,
      out_dtype=rhs.dtype,
      sum_dtype=jnp.dtype("float64" if rhs.dtype == jnp.float64 else "float32"),
      window=Window(rhs.shape[:n], tuple(window_strides), dilation, out),
    )
    y = product(static, x, kernel, None)
    return y.reshape(lhs.shape[0], *out, rhs.shape[-1])

  return conv_general_dilated
