"""WoodFisher: OBS with the block-diagonal empirical Fisher matrix."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.core import check_finite, check_integer, check_masks, check_number
from sparsejax.second_order._compensation import statistics_dtype


def fisher_inverse(gradients: jax.Array, damping: float = 1e-5) -> jax.Array:
  """Inverts `damping * I + mean_i g_i g_i^T`, one gradient at a time.

  `F^-1 <- F^-1 - F^-1 g g^T F^-1 / (N + g^T F^-1 g)`, from `I / damping`.

  Args:
    gradients: float array `(N, n)`, one row per example.
    damping: added to the diagonal, above 0.

  Returns:
    Array `(n, n)`, float32, or float64 for float64 gradients.

  Raises:
    ValueError: `damping` is not above 0, or a gradient is not finite (under `jit`, the
      inverse is NaN instead).

  Example:
    >>> fisher_inverse(jnp.array([[1.0], [3.0]]), damping=1.0).tolist()
    [[0.1666...]]

  Reference: Singh and Alistarh, WoodFisher (2020), Eq. 5.
  """
  check_number("damping", damping, "be above 0", lambda v: 0 < v < float("inf"))
  check_finite("gradients", gradients)
  gradients = gradients.astype(statistics_dtype(gradients))
  count, n = gradients.shape

  def add(inverse, gradient):
    product = inverse @ gradient
    scale = count + gradient @ product
    return inverse - product[:, None] * product[None, :] / scale, None

  start = jnp.eye(n, dtype=gradients.dtype) / damping
  return jax.lax.scan(add, start, gradients)[0]


class WoodFisher(NamedTuple):
  """The inverse Fisher blocks of a weight vector."""

  blocks: jax.Array  # (blocks, size, size)
  n: int  # weights; the last block is padded


def block_inverse(
  gradients: jax.Array, *, block: int = 50, damping: float = 1e-5, batch_size: int = 64
) -> WoodFisher:
  """Inverts the diagonal blocks of the Fisher matrix, of `block` adjacent weights each.

  Args:
    gradients: float array `(N, n)`, one row per example.
    block: weights per block.
    damping: added to the diagonal, above 0.
    batch_size: the number of blocks computed at a time.

  Returns:
    `WoodFisher`.

  Raises:
    ValueError: `block` is below 1, `damping` is not above 0, or a gradient is not
      finite.

  Example:
    >>> block_inverse(jnp.ones((4, 5)), block=2).blocks.shape
    (3, 2, 2)

  Reference: Singh and Alistarh (2020), section 3.2.
  """
  check_integer("block", block, 1)
  check_integer("batch_size", batch_size, 1)
  if gradients.ndim != 2:
    raise ValueError(f"gradients must have shape (N, n), got {gradients.shape}.")
  check_finite("gradients", gradients)
  count, n = gradients.shape
  padded = jnp.pad(gradients, ((0, 0), (0, -n % block)))
  chunks = jnp.moveaxis(padded.reshape(count, -1, block), 1, 0)
  blocks = jax.lax.map(
    lambda g: fisher_inverse(g, damping), chunks, batch_size=batch_size
  )
  return WoodFisher(blocks, n)


def woodfisher_saliency(weights: jax.Array, fisher: WoodFisher) -> jax.Array:
  """Predicts the rise of the loss for each weight, `w_q^2 / (2 [F^-1]_qq)`.

  Args:
    weights: float array `(n,)`.
    fisher: from `block_inverse`.

  Returns:
    Array `(n,)` of the inverse's dtype, in units of the loss; finite for finite
    weights.

  Example:
    >>> fisher = block_inverse(jnp.array([[1.0, 0.0]]), block=2, damping=1.0)
    >>> woodfisher_saliency(jnp.array([1.0, 1.0]), fisher).tolist()
    [1.0, 0.5]

  Reference: Singh and Alistarh (2020), Eq. 12.
  """
  diagonal = jnp.diagonal(fisher.blocks, axis1=1, axis2=2).reshape(-1)[: fisher.n]
  limits = jnp.finfo(diagonal.dtype)
  # Rounding can make a diagonal entry of the inverse zero or negative. The curvature is
  # then very high, so the weight gets the highest saliency instead of NaN.
  saliency = weights.astype(diagonal.dtype) ** 2 / (
    2 * jnp.maximum(diagonal, limits.tiny)
  )
  return jnp.minimum(saliency, limits.max)


def woodfisher_compensate(
  weights: jax.Array, fisher: WoodFisher, mask: jax.Array
) -> jax.Array:
  """Computes the optimal live weights when the masked ones of each block are deleted.

  `w - F^-1 E (E^T F^-1 E)^-1 E^T w`, `E` the columns of the masked weights

  This is exact for several deletions per block, unlike the sum of single updates.

  Args:
    weights: float array `(n,)`.
    fisher: from `block_inverse`.
    mask: bool array `(n,)`, True = live.

  Returns:
    Array `(n,)` of the weights' dtype, exactly 0.0 where masked, and NaN at the live
    weights of a block whose inverse is not finite. A block whose equations are singular
    to working precision keeps its live weights unchanged.

  Raises:
    TypeError: `mask` is not bool.
    ValueError: `mask` has a different shape than `weights`.

  Example:
    >>> fisher = WoodFisher(jnp.array([[[1.0, 0.5], [0.5, 1.0]]]), 2)
    >>> w = jnp.array([2.0, 3.0])
    >>> woodfisher_compensate(w, fisher, jnp.array([False, True])).tolist()
    [0.0, 2.0]

  Reference: Kurtic et al., The optimal BERT surgeon (2022), Eq. 4.
  """
  check_masks(mask, "mask")
  if mask.shape != weights.shape:
    raise ValueError(
      f"mask must have the shape of weights {weights.shape}, got {mask.shape}."
    )
  size, dtype = fisher.blocks.shape[1], fisher.blocks.dtype
  pad = (0, -fisher.n % size)
  w = jnp.pad(weights.astype(dtype), pad).reshape(-1, size)
  live = jnp.pad(mask, pad, constant_values=True).reshape(-1, size)
  eye = jnp.eye(size, dtype=dtype)

  # Solve for the multipliers of the masked weights; identity rows for the live ones
  # keep the shape fixed.
  def one_block(w, live, inverse):
    dead = ~live
    small = jnp.where(dead[:, None] & dead[None, :], inverse, eye)
    multiplier = jnp.linalg.solve(small, jnp.where(dead, w, 0))
    new = w - inverse @ jnp.where(dead, multiplier, 0)
    new = jnp.where(jnp.all(jnp.isfinite(new)), new, w)
    new = jnp.where(jnp.all(jnp.isfinite(inverse)), new, jnp.nan)
    return jnp.where(live, new, 0)

  result = jax.vmap(one_block)(w, live, fisher.blocks)
  return result.reshape(-1)[: fisher.n].astype(weights.dtype)
