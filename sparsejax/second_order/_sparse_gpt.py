"""SparseGPT: one-shot layer-wise OBS in a fixed order of columns, with N:M masks."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core import check_integer, check_number, check_tuple, top_k_mask
from sparsejax.second_order._compensation import (
  check_factor,
  check_rows,
  regularized,
  statistics_dtype,
)


class OneShot(NamedTuple):
  """Compensated weights, exactly 0.0 where masked, and their mask, both `(rows, n)`."""

  weights: jax.Array
  mask: jax.Array


def sparse_gpt(
  weights: jax.Array,
  hessian: jax.Array,
  density: float = 0.5,
  *,
  n_m: tuple[int, int] | None = None,
  live: int | None = None,
  block: int = 128,
  damping: float = 0.01,
) -> OneShot:
  """Prunes a layer's columns from left to right, each compensated by those after it.

  With `U` the upper Cholesky factor of `H^-1`, the score of a weight is
  `w^2 / U_ii^2`.

  The mask of each block of columns (or each group of M) is chosen when the block is
  reached, from the weights compensated so far. The error `w_i / U_ii` of a dropped
  weight times row `i` of `U` is then subtracted from the columns to its right. The
  method is cheap because all rows share one inverse.

  Args:
    weights: float array `(rows, n)`, the transpose of a Dense kernel.
    hessian: float array `(n, n)`, `(2 / samples) X^T X`, best in float32 or float64.
      It may be singular, as with fewer samples than columns; see `regularized`.
    density: the fraction kept, in (0, 1]: exactly `round(density * rows * n)` weights,
      at least one, divided evenly among the blocks of columns; not used with `n_m`.
    n_m: `(N, M)` keeps the best N of every M adjacent columns in each row.
    live: the number of weights to keep, instead of `density`; not used with `n_m`.
    block: columns per block; with `n_m`, rounded up to a multiple of M.
    damping: fraction of the mean diagonal added to the diagonal.

  Returns:
    `OneShot` with the weights in their own dtype. They are computed in float32 or, if
    an argument is float64, in float64.

  Raises:
    TypeError: `weights` or `hessian` is not floating point.
    ValueError: `density`, `n_m`, `live`, `block` or `damping` breaks its rule;
      `weights` or `hessian` is not finite, or `hessian` is not positive semidefinite.
      Under `jit`, such a Hessian gives NaN at live weights instead, in a mask of the
      same counts, or the same error through `checkify.checkify`.

  Example:
    >>> w = jnp.array([[1.0, 4.0, 3.0, 2.0]])
    >>> sparse_gpt(w, jnp.eye(4), n_m=(2, 4)).mask.tolist()
    [[False, True, True, False]]

  Reference: Frantar and Alistarh, SparseGPT (2023), Algorithm 1.
  """
  check_rows(weights, hessian, damping)
  rows, n = weights.shape
  if hessian.ndim != 2:
    raise ValueError(f"hessian must have shape ({n}, {n}), got {hessian.shape}.")
  check_number("density", density, "be in (0, 1]", lambda v: 0 < v <= 1)
  if live is not None:
    check_integer("live", live, 0)
    if live > rows * n:
      raise ValueError(f"live must be at most {rows * n}, the weights, got {live}.")
  check_integer("block", block, 1)
  if n_m is not None:
    check_tuple("n_m", n_m, 2)
    n_m = (n_m[0], n_m[1])
    if not 0 < n_m[0] <= n_m[1]:
      raise ValueError(f"n_m must be (N, M) with 0 < N <= M, got {n_m}.")
    if n % n_m[1]:
      raise ValueError(f"n_m: M must divide the {n} columns, got {n_m}.")
    block = -(-min(block, n) // n_m[1]) * n_m[1]
  block = min(block, n)
  kept = _kept_per_block(_live(density, rows * n) if live is None else live, n, block)
  result, pivots = _prune_columns(weights, hessian, kept, damping, n_m=n_m, block=block)
  check_factor(pivots, hessian)
  return result


# Jitted, because run eagerly the loops compile at every call.
@functools.partial(jax.jit, static_argnames=("n_m", "block"))
def _prune_columns(weights, hessian, kept, damping, *, n_m, block):
  """Returns the result and the pivots of the Hessian's factor, NaN if it has none."""
  rows, n = weights.shape
  dtype = statistics_dtype(weights, hessian)
  given, weights, hessian = weights.dtype, weights.astype(dtype), hessian.astype(dtype)
  # Factor the inverse Hessian once, then pad the columns to whole blocks.
  factor, scales = _rows_of_inverse(regularized(hessian, damping))
  padding = -n % block
  weights = jnp.pad(weights, ((0, 0), (0, padding)))
  factor = jnp.pad(factor, ((0, padding), (0, padding)))
  pivots = jnp.pad(scales, (0, padding))
  real = jnp.arange(n + padding) < n

  n_kept, group = (1, 1) if n_m is None else n_m

  def scores_of(chunk, pivots):
    # |w| / U_ii ranks like its square, w^2 / U_ii^2, and cannot overflow.
    scores = jnp.abs(chunk) * pivots[None]
    return jnp.where(jnp.isnan(scores), -jnp.inf, scores)

  def choose_group(chunk, pivots, mask, i):
    """Keeps the best N of the M columns from `i`, per row; earlier columns win ties."""
    columns = jax.lax.dynamic_slice_in_dim(chunk, i, group, 1)
    scores = scores_of(columns, jax.lax.dynamic_slice_in_dim(pivots, i, group))
    mine, other = scores[:, :, None], scores[:, None, :]
    earlier = jnp.arange(group)[None, :] < jnp.arange(group)[:, None]
    better = (other > mine) | ((other == mine) & earlier[None])
    best = jnp.sum(better, -1, dtype=jnp.int32) < n_kept
    return jax.lax.dynamic_update_slice_in_dim(mask, best, i, 1)

  # Prune one block of columns, then compensate the columns of all later blocks.
  def one_block(weights, start_and_kept):
    start, kept = start_and_kept

    def cut(x, axis):
      return jax.lax.dynamic_slice_in_dim(x, start, block, axis)

    chunk, rows_of_factor, valid = cut(weights, 1), cut(factor, 0), cut(real, 0)
    square, scale = cut(rows_of_factor, 1), cut(pivots, 0)
    # Without `n_m`, the whole block's mask is chosen here, from compensated weights.
    mask = jnp.zeros(chunk.shape, bool)
    if n_m is None:
      candidates = jnp.broadcast_to(valid[None], chunk.shape)
      mask = top_k_mask(scores_of(chunk, scale), kept, candidates)

    # Subtract a column's error times its row of U / U_ii from the rest of the block.
    # The diagonal of that row is one, so this also sets the dropped weights to zero.
    def column(carry, i):
      chunk, mask = carry
      if n_m is not None:
        # Choose a group's mask at its first column, from the compensated weights.
        mask = jax.lax.cond(
          i % group == 0, choose_group, lambda c, p, m, i: m, chunk, scale, mask, i
        )
      error = jnp.where(mask[:, i], 0, chunk[:, i])
      chunk = chunk - error[:, None] * square[i][None]
      return (chunk, mask), error

    (chunk, mask), errors = jax.lax.scan(column, (chunk, mask), jnp.arange(block))
    # Apply the errors of the whole block to all later columns, as one matrix product.
    later = jnp.arange(n + padding) >= start + block
    correction = errors.T @ jnp.where(later[None], rows_of_factor, 0)
    weights = weights - correction
    chunk = jnp.where(mask, chunk, 0)
    return jax.lax.dynamic_update_slice_in_dim(weights, chunk, start, 1), mask

  # Go through the blocks from left to right, and remove the padding at the end.
  starts = jnp.arange(0, n + padding, block)
  weights, masks = jax.lax.scan(one_block, weights, (starts, kept))
  mask = jnp.moveaxis(masks, 0, 1).reshape(rows, -1)
  return OneShot(weights[:, :n].astype(given), mask[:, :n]), scales


def _rows_of_inverse(hessian):
  """Returns `U_i / U_ii` per row i, and `1 / U_ii`, for the Cholesky factor of `H^-1`.

  With `H = R R^T`, R upper triangular, the upper factor is `U = R^-1`, so that the
  inverse itself is not formed.
  """
  root = jnp.linalg.cholesky(hessian[::-1, ::-1])[::-1, ::-1]
  eye = jnp.eye(len(hessian), dtype=hessian.dtype)
  factor = jax.scipy.linalg.solve_triangular(root, eye)
  pivots = jnp.diagonal(root)
  return pivots[:, None] * factor, pivots


def _live(density, size):
  """Returns `round(density * size)`, at least 1; an int, or int64 for a JAX density."""
  if not isinstance(density, jax.Array):
    return max(1, round(float(density) * size))
  with jax.enable_x64(True):
    live = jnp.round(density.astype(jnp.float64) * size).astype(jnp.int64)
    return jnp.maximum(live, 1)


def _kept_per_block(live, n, block):
  """Returns how many of `live` weights each block of columns keeps, int32 (blocks,)."""
  # Rounding the cumulative sum, not each block's count, keeps the total exact.
  ends = np.minimum(np.arange(0, n + block, block), n)
  with jax.enable_x64(True):
    totals = (2 * jnp.asarray(live, jnp.int64) * jnp.asarray(ends) + n) // (2 * n)
    return jnp.diff(totals).astype(jnp.int32)
