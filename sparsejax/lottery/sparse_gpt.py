"""SparseGPT: one-shot layer-wise OBS in a fixed column order, with N:M masks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core import top_k_mask
from sparsejax.core.checks import check_integer, check_number, check_tuple
from sparsejax.lottery.compensation import damped


class OneShot(NamedTuple):
  """Compensated weights, exactly 0.0 where dead, and their mask, both `(rows, n)`."""

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
  `w^2 / U_ii^2`, chosen anew for each block of columns (or each group of M); a dropped
  weight's error `w_i / U_ii` times row `i` of `U` is taken from the columns to its
  right. All rows share the inverse, which is what makes it cheap.

  Args:
    weights: float array `(rows, n)`, the transpose of a Dense kernel.
    hessian: float array `(n, n)`, `(2 / samples) X^T X`.
    density: the fraction kept, in (0, 1]: exactly `round(density * rows * n)` weights,
      shared out evenly over the blocks of columns; not used with `n_m`.
    n_m: `(N, M)`: keep the best N of every M neighbouring columns.
    live: how many weights to keep, in place of `density`; not used with `n_m`.
    block: columns a block.
    damping: fraction of the mean diagonal added to the diagonal.

  Returns:
    `OneShot`.

  Raises:
    ValueError: `density`, `n_m`, `live`, `block` or `damping` breaks its rule.

  Example:
    >>> w = jnp.array([[1.0, 4.0, 3.0, 2.0]])
    >>> sparse_gpt(w, jnp.eye(4), n_m=(2, 4)).mask.tolist()
    [[False, True, True, False]]

  Reference: Frantar and Alistarh, SparseGPT (2023), Algorithm 1.
  """
  rows, n = weights.shape
  if hessian.shape != (n, n):
    raise ValueError(f"hessian must have shape ({n}, {n}), got {hessian.shape}.")
  check_number("density", density, "be in (0, 1]", lambda v: 0 < v <= 1)
  if live is None:
    live = max(1, round(density * rows * n))
  check_integer("live", live, 0)
  if live > rows * n:
    raise ValueError(f"live must be at most {rows * n}, the weights, got {live}.")
  check_integer("block", block, 1)
  check_number("damping", damping, "be at least 0", lambda v: 0 <= v < float("inf"))
  if n_m is not None:
    check_tuple("n_m", n_m, 2)
    if not 0 < n_m[0] <= n_m[1]:
      raise ValueError(f"n_m must be (N, M) with 0 < N <= M, got {n_m}.")
    if n % n_m[1]:
      raise ValueError(f"n_m: M must divide the {n} columns, got {n_m}.")
    block = -(-min(block, n) // n_m[1]) * n_m[1]
  block = min(block, n)
  # Column i's row of the factor must hold only what lies to its right.
  inverse = jnp.linalg.inv(damped(hessian, damping))
  upper = jnp.linalg.cholesky(inverse).T
  padding = -n % block
  weights = jnp.pad(weights, ((0, 0), (0, padding)))
  upper = jnp.pad(upper, ((0, padding), (0, padding)))
  diagonal = jnp.diagonal(upper)
  real = jnp.arange(n + padding) < n
  diagonal = jnp.where(real, diagonal, jnp.ones_like(diagonal))

  def choose(chunk, pivots, valid, count):
    scores = jnp.where(valid[None], (chunk / pivots[None]) ** 2, -jnp.inf)
    if n_m is not None:
      n_kept, group = n_m
      groups = scores.reshape(-1, group)
      kept = jax.vmap(lambda s: top_k_mask(s, n_kept))(groups)
      return kept.reshape(scores.shape)
    return top_k_mask(scores, count)

  def one_block(weights, start_and_count):
    start, count = start_and_count

    def cut(x, axis):
      return jax.lax.dynamic_slice_in_dim(x, start, block, axis)

    chunk, rows_of_upper = cut(weights, 1), cut(upper, 0)
    square, pivots = cut(rows_of_upper, 1), cut(diagonal, 0)
    group_size = None if n_m is None else n_m[1]
    mask = jnp.zeros(chunk.shape, bool)
    if n_m is None:
      mask = choose(chunk, pivots, cut(real, 0), count)

    def column(carry, i):
      chunk, mask = carry
      if group_size is not None:
        # A group is chosen when its first column is reached, from compensated weights.
        fresh = choose(chunk, pivots, cut(real, 0), count)
        group = jnp.arange(block) // group_size == i // group_size
        mask = jnp.where((i % group_size == 0) & group[None], fresh, mask)
      value = chunk[:, i]
      error = jnp.where(mask[:, i], 0, value) / pivots[i]
      chunk = chunk - error[:, None] * square[i][None]
      return (chunk, mask), error

    (chunk, mask), errors = jax.lax.scan(column, (chunk, mask), jnp.arange(block))
    later = jnp.arange(n + padding) >= start + block
    correction = errors.T @ jnp.where(later[None], rows_of_upper, 0)
    weights = weights - correction
    chunk = jnp.where(mask, chunk, 0)
    return jax.lax.dynamic_update_slice_in_dim(weights, chunk, start, 1), mask

  starts = jnp.arange(0, n + padding, block)
  # Rounding the running total, not each block's count, keeps the sum exact.
  totals = [
    (2 * live * min(end, n) + n) // (2 * n) for end in range(0, n + block, block)
  ]
  counts = jnp.asarray(np.diff(totals), jnp.int32)
  weights, masks = jax.lax.scan(one_block, weights, (starts, counts))
  mask = jnp.moveaxis(masks, 0, 1).reshape(rows, -1)
  return OneShot(weights[:, :n], mask[:, :n])
