"""Orthogonal kernels spread over their taps (Xiao et al. 2018, algorithm 1)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core import check_key, check_number
from sparsejax.initializers._orthogonal import (
  at_least_float32,
  check_channels,
  check_stacked,
  haar,
  split_shape,
)

Array = jax.Array


def block_orthogonal(gain: float = 1.0, *, stacked: bool | None = None):
  """Returns an initializer of orthogonal convolutions with weight on every tap.

  W = gain O * B_1 * ... * B_{k-1},  O = Haar(c_out)[:c_in]

  where each factor has two taps per axis: the products of a random projection P per
  axis, or of its complement 1 - P. `*` is a convolution with matrix products instead of
  products of numbers. Under circular padding the layer is an exact isometry; zero
  padding cuts off what leaves the image. Frequencies decay at different rates, so depth
  loses more signal than with `delta_orthogonal`.

  Args:
    gain: the singular values of the layer; sigma_w of the theory.
    stacked: whether shapes have a leading axis of layers; must be given for rank 5.

  Returns:
    An initializer `(key, shape, dtype=float32) -> array`, for shapes (*taps, c_in,
    c_out) or (L, *taps, c_in, c_out) with the same k taps along one to three axes.

  Raises:
    ValueError: (the initializer) c_in > c_out, unequal numbers of taps, or an ambiguous
      shape.

  References:
    Xiao et al. 2018, "Dynamical isometry and a mean field theory of CNNs", algorithm 1.

  Example:
    >>> kernel = block_orthogonal()(jax.random.key(0), (3, 3, 4, 4))
    >>> norm = jnp.einsum("hwio,hwjo->ij", kernel, kernel)
    >>> bool(jnp.abs(norm - jnp.eye(4)).max() < 1e-5)
    True
  """
  check_number("gain", gain, "be above 0", lambda v: 0 < v < np.inf)
  check_stacked(stacked)

  def init(key, shape, dtype=jnp.float32, out_sharding=None):
    del out_sharding
    check_key("key", key)
    layers, taps, c_in, c_out = split_shape(shape, stacked)
    check_channels(c_in, c_out)
    if len(set(taps)) > 1:
      raise ValueError(f"taps must be as many along every axis, got {taps}.")
    wide = at_least_float32(dtype)
    # Start with an orthogonal matrix at a single tap; every convolution with a factor
    # of two taps per axis adds one tap per axis.
    first, *keys = jax.random.split(key, 1 + (taps[0] - 1) * len(taps))
    origin = (0,) * len(taps)
    kernel = {origin: haar(first, layers, c_out, wide)[..., :c_in, :]}
    for i in range(taps[0] - 1):
      projections = [
        _projection(k, layers, c_out, wide) for k in keys[i :: taps[0] - 1]
      ]
      kernel = _convolve(kernel, _two_taps(projections))
    # The keys of `kernel` are tap positions; sorted, they are in row-major order.
    flat = jnp.stack([kernel[place] for place in sorted(kernel)], len(layers))
    return flat.reshape(shape).astype(dtype) * np.asarray(gain, dtype)

  return init


def _projection(key: Array, batch: tuple[int, ...], n: int, dtype) -> Array:
  """Draws projections onto random subspaces of random rank, (*batch, n, n)."""
  k_basis, k_columns = jax.random.split(key)
  columns = jax.random.bernoulli(k_columns, 0.5, (*batch, 1, n)).astype(dtype)
  basis = haar(k_basis, batch, n, dtype) * columns
  return basis @ basis.mT


def _two_taps(projections: list[Array]) -> dict[tuple[int, ...], Array]:
  """Returns two taps per axis, each a product of projections or complements."""
  taps = {}
  for place in itertools.product((0, 1), repeat=len(projections)):
    eye = jnp.eye(projections[0].shape[-1], dtype=projections[0].dtype)
    factors = [
      jnp.broadcast_to(eye, p.shape) - p if side else p
      for p, side in zip(projections, place, strict=True)
    ]
    product = factors[0]
    for factor in factors[1:]:
      product = product @ factor
    taps[place] = product
  return taps


def _convolve(a: dict, b: dict) -> dict:
  """Convolves kernels given as {position: matrices}."""
  out = {}
  for (i, x), (j, y) in itertools.product(a.items(), b.items()):
    place = tuple(p + q for p, q in zip(i, j, strict=True))
    out[place] = out[place] + x @ y if place in out else x @ y
  return out
