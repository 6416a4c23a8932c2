"""Layer-wise OBS: the order in which each output neuron's weights are deleted.

The loss is quadratic in the incoming weights of every output neuron. Rows are neurons:
`weights` is `(rows, n)`, the transpose of a Dense kernel, and `hessian` is `(n, n)`,
shared by all rows, or `(rows, n, n)`, one per row. Deleting and compensating weights of
one row does not change the others, so rows can be vmapped.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.core import check_integer
from sparsejax.second_order._compensation import (
  check_factor,
  check_rows,
  regularized,
  statistics_dtype,
)


class Order(NamedTuple):
  """The order in which OBS deletes each row's weights, until none are left."""

  index: jax.Array  # (rows, n) int32, the weight deleted at each step
  rise: jax.Array  # (rows, n) the loss each deletion adds, with compensation


def deletion_order(
  weights: jax.Array,
  hessian: jax.Array,
  *,
  damping: float = 0.01,
  block: int = 32,
  batch_size: int = 16,
) -> Order:
  """Computes each row's greedy OBS deletion order and the loss that each step adds.

  At each step `q = argmin w_q^2 / (2 [H^-1]_qq)`, then the OBS update of the row and
  the downdate of its inverse.

  This is the ExactOBS algorithm. Downdates are applied in blocks of `block`, as one
  matrix product. Within a block, the required columns of the inverse are computed from
  the pending downdates.

  Args:
    weights: float array `(rows, n)`.
    hessian: float array `(n, n)` or `(rows, n, n)`, positive semidefinite. It may be
      singular, as with fewer samples than columns; see `regularized`.
    damping: fraction of the mean diagonal added to the diagonal.
    block: the number of downdates per matrix product; it affects speed, not the result.
    batch_size: the number of rows computed at a time; each needs `n^2` floats.

  Returns:
    `Order`, in float32 or, if an argument is float64, in float64.

  Raises:
    TypeError: `weights` or `hessian` is not floating point.
    ValueError: shapes do not fit, `damping` is negative, a number is not finite, or
      `hessian` is not positive semidefinite. Under `jit`, such a Hessian gives a rise
      of NaN instead, or the same error through `checkify.checkify`.

  Example:
    >>> h = jnp.array([[2.0, 1.0], [1.0, 2.0]])
    >>> order = deletion_order(jnp.array([[1.0, 4.0]]), h, damping=0.0)
    >>> order.index.tolist(), [round(x, 3) for x in order.rise[0].tolist()]
    ([[0, 1]], [0.75, 20.25])

  Reference: Frantar and Alistarh, Optimal brain compression (2022), Algorithm 1.
  """
  check_rows(weights, hessian, damping)
  check_integer("block", block, 1)
  check_integer("batch_size", batch_size, 1)
  block = min(block, weights.shape[1])
  order = _deletion_order(weights, hessian, damping, block, batch_size)
  check_factor(order.rise, hessian)
  return order


# Jitted, because run eagerly the loops compile at every call.
@functools.partial(jax.jit, static_argnames=("block", "batch_size"))
def _deletion_order(weights, hessian, damping, block, batch_size):
  n = weights.shape[1]
  dtype = statistics_dtype(weights, hessian)
  weights = weights.astype(dtype)
  hessian = regularized(hessian.astype(dtype), damping)

  def invert(hessian):
    factor = jnp.linalg.cholesky(hessian)
    eye = jnp.eye(n, dtype=dtype)
    return jax.scipy.linalg.cho_solve((factor, True), eye)

  def delete_row(row, inverse, diagonal):
    # A lower bound on the diagonal of the inverse, against rounding errors of the
    # downdates: [H_LL^-1]_qq >= 1 / H_qq for any live block.
    least = 1 / diagonal

    def one_block(state, count):
      return _delete_block(state, count, block, least)

    # Delete all n weights, `block` per iteration; the last iteration may have fewer.
    live = jnp.ones(row.shape, bool)
    state = (row, live, inverse, jnp.diagonal(inverse))
    left = [block] * (n // block) + ([n % block] if n % block else [])
    _, (index, rise) = jax.lax.scan(one_block, state, jnp.array(left, jnp.int32))
    # If the inverse is not finite, the order is meaningless: report NaN.
    rise = jnp.where(jnp.all(jnp.isfinite(inverse)), rise, jnp.nan)
    return index.reshape(-1)[:n], rise.reshape(-1)[:n]

  # A shared Hessian is inverted once, otherwise there is one inversion per row.
  if hessian.ndim == 2:
    inverse, diagonal = invert(hessian), jnp.diagonal(hessian)
    index, rise = jax.lax.map(
      lambda w: delete_row(w, inverse, diagonal), weights, batch_size=batch_size
    )
  else:
    index, rise = jax.lax.map(
      lambda pair: delete_row(pair[0], invert(pair[1]), jnp.diagonal(pair[1])),
      (weights, hessian),
      batch_size=batch_size,
    )
  return Order(index, rise)


def _delete_block(state, count, block, least):
  """Makes `count <= block` deletions in one row, then one rank-`block` downdate."""
  row, live, inverse, diagonal = state
  pending = jnp.zeros((block, row.size), row.dtype)

  def delete(step, carry):
    row, live, diagonal, pending, index, rise = carry
    safe, largest = jnp.maximum(diagonal, least), jnp.finfo(row.dtype).max
    saliency = row**2 / (2 * safe)
    # Saliencies of live weights are finite and those of deleted ones infinite, so that
    # each weight is deleted exactly once, even if the row has inf or NaN.
    saliency = jnp.where(saliency < largest, saliency, largest)
    saliency = jnp.where(live, saliency, jnp.inf)
    q = jnp.argmin(saliency).astype(jnp.int32)
    # Column q of the current inverse: the stored one minus the pending downdates.
    column = inverse[q] - pending[:, q] @ pending
    root = jnp.sqrt(safe[q])
    scaled = jnp.where(live, column / root, 0).at[q].set(root)
    # Steps beyond `count` have no weight to delete and change nothing.
    scaled = jnp.where(step < count, scaled, jnp.zeros_like(scaled))
    rest = live.at[q].set(live[q] & (step >= count))
    return (
      jnp.where(rest, row - row[q] / root * scaled, 0),
      rest,
      jnp.where(rest, diagonal - scaled**2, 0),
      pending.at[step].set(scaled),
      index.at[step].set(q),
      rise.at[step].set(saliency[q]),
    )

  carry = (
    row,
    live,
    diagonal,
    pending,
    jnp.zeros(block, jnp.int32),
    jnp.zeros(block, row.dtype),
  )
  carry = jax.lax.fori_loop(0, block, delete, carry)
  row, live, diagonal, pending, index, rise = carry
  return (row, live, inverse - pending.T @ pending, diagonal), (index, rise)


def order_scores(order: Order) -> jax.Array:
  """Computes scores for which any threshold deletes a prefix of each row's order.

  The score of a weight is the largest rise up to and including its own deletion. Scores
  thus never decrease along the order, and a global threshold compares marginal costs
  between rows and layers.

  Args:
    order: from `deletion_order`.

  Returns:
    Float array `(rows, n)`; higher scores are kept.

  Example:
    >>> order = Order(jnp.array([[1, 0, 2]]), jnp.array([[1.0, 3.0, 2.0]]))
    >>> order_scores(order).tolist()
    [[3.0, 1.0, 3.0]]
  """
  marginal = jax.lax.cummax(order.rise, axis=1)
  empty = jnp.zeros_like(marginal)
  return jax.vmap(lambda e, i, m: e.at[i].set(m))(empty, order.index, marginal)
