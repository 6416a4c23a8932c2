"""Exactly orthogonal sparse kernels, and the masks to train them under."""

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core import check_number
from sparsejax.initializers._orthogonal import center, check_channels, haar, split_shape

Array = jax.Array


def sparse_orthogonal(
  density: float = 0.25, gain: float = 1.0, *, stacked: bool | None = None
):
  """Returns an initializer of sparse delta-orthogonal kernels, of permuted blocks.

  W[center] = gain P1 blockdiag(Q_1, ..., Q_{C/b}) P2,  Q_i ~ Haar(b),  b = density C

  Every row and column of the C x C matrix has b weights. The density is exactly b / C,
  and the matrix is exactly orthogonal at any density. By contrast, a random mask of the
  same density makes the matrix singular, and the product of thousands of them zero.
  `orthogonal_support` returns the mask to train under.

  Args:
    density: fraction of weights kept of the C x C matrix, in (0, 1]; density C must be
      a whole number that divides C.
    gain: the kernel's singular values; sigma_w of the theory.
    stacked: whether shapes have a leading axis of layers; must be given for rank 5.

  Returns:
    An initializer `(key, shape, dtype=float32) -> array`, for shapes (*taps, C, C) or
    (L, *taps, C, C).

  Raises:
    ValueError: the density is outside (0, 1]; (the initializer) there is no such block,
      or the numbers of input and output channels differ.

  Example:
    >>> kernel = sparse_orthogonal(0.25)(jax.random.key(0), (3, 3, 8, 8))
    >>> w = kernel[1, 1]
    >>> int((w != 0).sum()), bool(jnp.abs(w @ w.T - jnp.eye(8)).max() < 1e-5)
    (16, True)
  """
  check_number("density", density, "be in (0, 1]", lambda v: 0 < v <= 1)

  def init(key, shape, dtype=jnp.float32, out_sharding=None):
    del out_sharding
    layers, taps, c_in, c_out = split_shape(shape, stacked)
    check_channels(c_in, c_out)
    if c_in != c_out:
      raise ValueError(
        "c_in must equal c_out for a sparse orthogonal kernel, got "
        f"c_in={c_in}, c_out={c_out}."
      )
    block = round(density * c_out)
    if abs(block - density * c_out) > 1e-6 * c_out or not block or c_out % block:
      raise ValueError(
        "density times channels must be a whole number that divides the channels, got "
        f"{density} x {c_out} = {density * c_out:g}."
      )
    # Draw the blocks and place block i at (i, i) of a matrix of zeros, of shape (...,
    # blocks, b, blocks, b).
    k_blocks, k_rows, k_columns = jax.random.split(key, 3)
    q = haar(k_blocks, (*layers, c_out // block), block, dtype)
    n = c_out // block
    place = jnp.eye(n, dtype=dtype).reshape(*(1 for _ in layers), n, 1, n, 1)
    wide = q[..., :, :, None, :] * place
    w = wide.reshape(*layers, c_out, c_out) * np.asarray(gain, dtype)
    # Permute rows and columns, and put the matrix at the center tap.
    rows = _permutations(k_rows, layers, c_out)
    columns = _permutations(k_columns, layers, c_out)
    w = jnp.take_along_axis(w, rows[..., :, None], -2)
    w = jnp.take_along_axis(w, columns[..., None, :], -1)
    kernel = jnp.zeros((*layers, *taps, c_in, c_out), dtype)
    return kernel.at[(*(slice(None),) * len(layers), *center(taps))].set(w)

  return init


def _permutations(key: Array, batch: tuple[int, ...], n: int) -> Array:
  return jnp.argsort(jax.random.uniform(key, (*batch, n)), -1)


def orthogonal_support(kernel: Array, *, stacked: bool | None = None) -> Array:
  """Returns the mask for training a kernel of `sparse_orthogonal`.

  m[t, i, j] = W[center, i, j] != 0, at every tap t

  The taps beside the center start at zero but must be live: without them, no layer sees
  the neighbors of a pixel.

  Args:
    kernel: (*taps, c_in, c_out), or (L, *taps, c_in, c_out).
    stacked: whether the first axis is one of layers; must be given for rank 5.

  Returns:
    bool, of the kernel's shape; its density is that of the center.

  Raises:
    ValueError: the shape is ambiguous.

  Example:
    >>> kernel = sparse_orthogonal(0.25)(jax.random.key(0), (3, 3, 8, 8))
    >>> float(orthogonal_support(kernel).mean())
    0.25
  """
  layers, taps, _, _ = split_shape(kernel.shape, stacked)
  at = (*(slice(None),) * len(layers), *center(taps))
  live = jnp.expand_dims(kernel[at] != 0, range(len(layers), len(layers) + len(taps)))
  return jnp.broadcast_to(live, kernel.shape)
