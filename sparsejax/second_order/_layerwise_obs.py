"""Layer-wise OBS: every output neuron is a quadratic in its own incoming weights.

Rows here are neurons: `weights` is `(rows, n)`, the transpose of a Dense kernel, and
`hessian` is `(n, n)`, shared, or `(rows, n, n)`, one a neuron. Zeroing and compensating
one row never touches another, so rows are a `vmap`.
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
  """The order in which OBS deletes each row's weights, down to none."""

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
  """ExactOBS: for each row, the greedy OBS deletion order and what each step costs.

  At each step `q = argmin w_q^2 / (2 [H^-1]_qq)`, then the OBS update of the row and
  the downdate of its inverse. The downdates are applied `block` at a time, as one
  product: in between, the columns that are needed are computed from the pending ones.

  Args:
    weights: float array `(rows, n)`.
    hessian: float array `(n, n)` or `(rows, n, n)`, positive semidefinite. It may be
      singular, as with fewer samples than columns: see `regularized`.
    damping: fraction of the mean diagonal added to the diagonal.
    block: how many downdates are applied together (speed, not value).
    batch_size: how many rows are held at a time, `n^2` floats each.

  Returns:
    `Order`, in float32 or, if an argument is float64, in float64.

  Raises:
    TypeError: `weights` or `hessian` is not floating point.
    ValueError: shapes do not fit, `damping` is negative, a number is not finite, or
      `hessian` is not positive semidefinite. Under `jit` such a Hessian gives a rise
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


# Run eagerly, the loops would compile at every call.
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
    # No downdate leaves less: [H_LL^-1]_qq >= 1 / H_qq for any live block.
    least = 1 / diagonal

    def one_block(state, count):
      return _delete_block(state, count, block, least)

    live = jnp.ones(row.shape, bool)
    state = (row, live, inverse, jnp.diagonal(inverse))
    left = [block] * (n // block) + ([n % block] if n % block else [])
    _, (index, rise) = jax.lax.scan(one_block, state, jnp.array(left, jnp.int32))
    # Without an inverse the order is none.
    rise = jnp.where(jnp.all(jnp.isfinite(inverse)), rise, jnp.nan)
    return index.reshape(-1)[:n], rise.reshape(-1)[:n]

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
  """`count <= block` deletions of one row, then one rank-`block` downdate."""
  row, live, inverse, diagonal = state
  pending = jnp.zeros((block, row.size), row.dtype)

  def delete(step, carry):
    row, live, diagonal, pending, index, rise = carry
    safe, largest = jnp.maximum(diagonal, least), jnp.finfo(row.dtype).max
    saliency = row**2 / (2 * safe)
    # Finite where live, whatever the row: each weight is deleted once.
    saliency = jnp.where(saliency < largest, saliency, largest)
    saliency = jnp.where(live, saliency, jnp.inf)
    q = jnp.argmin(saliency).astype(jnp.int32)
    column = inverse[q] - pending[:, q] @ pending
    root = jnp.sqrt(safe[q])
    scaled = jnp.where(live, column / root, 0).at[q].set(root)
    # Past the last weight there is nothing to delete: leave everything as it is.
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
  """Scores that any threshold turns into a prefix of each row's deletion order.

  A row's cost of deleting `k` weights is convexified: the score of a weight is the
  largest rise up to and including its own deletion, so a global threshold compares
  marginal costs between rows and layers.

  Args:
    order: from `deletion_order`.

  Returns:
    Float array `(rows, n)`, higher = worth more.

  Example:
    >>> order = Order(jnp.array([[1, 0, 2]]), jnp.array([[1.0, 3.0, 2.0]]))
    >>> order_scores(order).tolist()
    [[3.0, 1.0, 3.0]]
  """
  marginal = jax.lax.cummax(order.rise, axis=1)
  empty = jnp.zeros_like(marginal)
  return jax.vmap(lambda e, i, m: e.at[i].set(m))(empty, order.index, marginal)
