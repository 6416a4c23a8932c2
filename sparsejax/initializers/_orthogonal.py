"""Batches of Haar-distributed orthogonal matrices, and shapes of kernels."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.core import check_flag

Array = jax.Array


class KernelShape(NamedTuple):
  """The parts of a convolution kernel's shape.

  Attributes:
    layers: () or (L,), the leading axis of a stack of layers.
    taps: the spatial axes.
    c_in: number of input channels.
    c_out: number of output channels.
  """

  layers: tuple[int, ...]
  taps: tuple[int, ...]
  c_in: int
  c_out: int


def check_stacked(stacked: bool | None) -> None:
  """Raises TypeError unless `stacked` is True, False or None."""
  if stacked is not None:
    check_flag("stacked", stacked)


def split_shape(shape: Sequence[int], stacked: bool | None) -> KernelShape:
  """Splits a kernel's shape into its parts; raises an error if it is ambiguous.

  Args:
    shape: (*taps, c_in, c_out) with one to three spatial axes, or
      (L, *taps, c_in, c_out).
    stacked: whether the first axis is one of layers. None reads shapes of rank 3 and 4
      as single kernels, and rejects rank 5, which may be a 3-D kernel or a stack of
      2-D ones.

  Returns:
    The parts.

  Raises:
    ValueError: no kernel has this rank, or it is 5 and `stacked` is None.

  Example:
    >>> split_shape((100, 3, 3, 16, 16), stacked=True)
    KernelShape(layers=(100,), taps=(3, 3), c_in=16, c_out=16)
  """
  shape = tuple(int(n) for n in shape)
  if len(shape) == 5 and stacked is None:
    raise ValueError(
      f"stacked must be given for a kernel of rank 5, got shape {shape} and "
      "stacked=None: True for layers stacked along the first axis, False for one 3-D "
      "kernel."
    )
  rank = len(shape) - bool(stacked)
  if not 3 <= rank <= 5:
    raise ValueError(
      "shape must be (*taps, c_in, c_out) with one to three spatial axes, and one "
      f"axis more in front where stacked; got {shape} and stacked={stacked}."
    )
  first = 1 if stacked else 0
  return KernelShape(shape[:first], shape[first:-2], *shape[-2:])


def check_channels(c_in: int, c_out: int) -> None:
  """Raises ValueError if c_in > c_out: no map onto fewer channels is an isometry."""
  if c_in > c_out:
    raise ValueError(
      "c_in must be at most c_out for an orthogonal kernel, got "
      f"c_in={c_in}, c_out={c_out}."
    )


def at_least_float32(dtype):
  """Returns the dtype to draw in: float32 for half precision, which is then rounded."""
  return jnp.float32 if jnp.dtype(dtype).itemsize < 4 else dtype


def center(taps: Sequence[int]) -> tuple[int, ...]:
  """Returns the index of the tap at the output's own position."""
  return tuple((k - 1) // 2 for k in taps)


def haar(key: Array, batch: Sequence[int], n: int, dtype=jnp.float32) -> Array:
  """Draws orthogonal matrices, uniform over the group, by one batched QR.

  Q R = A, A ~ N(0, 1);  Q <- Q sign(diag R)

  Args:
    key: a PRNG key.
    batch: the batch shape.
    n: number of rows and columns.
    dtype: floating. Half precision is drawn in float32 and rounded.

  Returns:
    (*batch, n, n), of `dtype`.

  Example:
    >>> q = haar(jax.random.key(0), (5,), 4)
    >>> bool(jnp.abs(q @ q.mT - jnp.eye(4)[None]).max() < 1e-5)
    True
  """
  wide = at_least_float32(dtype)
  q, r = jnp.linalg.qr(jax.random.normal(key, (*batch, n, n), wide))
  sign = jnp.where(jnp.diagonal(r, axis1=-2, axis2=-1) < 0, -1, 1).astype(wide)
  return (q * sign[..., None, :]).astype(dtype)
