"""Optimal brain surgeon: deletion of weights with compensation by all the others.

The formulas are exact for a quadratic loss `L(w) = g^T (w - w0) + (w - w0)^T H (w - w0)
/ 2` at its minimum. They need `n_weights^2` memory, so they suit small networks and
single rows of a kernel.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core import check_finite, check_integer, check_masks, check_number
from sparsejax.second_order._compensation import statistics_dtype


def live_inverse(
  hessian: jax.Array, mask: jax.Array, damping: float = 0.0
) -> jax.Array:
  """Inverts the live block of a Hessian; masked rows and columns are zero.

  Args:
    hessian: float array `(n, n)`, symmetric.
    mask: bool array `(n,)`, True = live.
    damping: added to the live diagonal. If the block is singular to working precision,
      `n eps max |diag H|` is added as well (`n eps` if that is 0).

  Returns:
    Float array `(n, n)`.

  Raises:
    TypeError: `mask` is not bool.
    ValueError: `damping` is negative, or `hessian` is not float32 or float64, or not
      finite (under `jit`, the inverse is NaN instead).

  Example:
    >>> live_inverse(jnp.diag(jnp.array([2.0, 4.0])), jnp.array([True, False])).tolist()
    [[0.5, 0.0], [0.0, 0.0]]
  """
  check_number("damping", damping, "be at least 0", lambda v: 0 <= v < np.inf)
  check_masks(mask, "mask")
  _check_square("hessian", hessian, mask.size)
  check_solvable("hessian", hessian)
  check_finite("hessian", hessian)
  return _live_inverse(hessian, mask, damping)


def _live_inverse(hessian, mask, damping):
  live = mask[:, None] & mask[None, :]
  eye = jnp.eye(mask.size, dtype=hessian.dtype)

  def invert(extra):
    matrix = jnp.where(live, hessian + (damping + extra) * eye, eye)
    inverse = jnp.linalg.inv(matrix)
    return jnp.where(live, inverse, jnp.zeros_like(inverse))

  def norm(matrix):
    return jnp.max(jnp.sum(jnp.abs(jnp.where(live, matrix, 0)), 0))

  inverse = invert(jnp.zeros((), hessian.dtype))
  smallest = mask.size * float(jnp.finfo(hessian.dtype).eps)
  # LAPACK's rule: a matrix is singular if the reciprocal of its condition number is
  # below rounding.
  regular = norm(hessian + damping * eye) * norm(inverse) * smallest < 1
  largest = jnp.max(jnp.abs(jnp.where(live, hessian, 0) * eye))
  unit = smallest * jnp.where(largest > 0, largest, jnp.ones_like(largest))
  return jax.lax.cond(regular, lambda: inverse, lambda: invert(unit))


def obs_saliency(
  weights: jax.Array, inverse: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
  """Predicts the rise of the loss when a weight is deleted and the others compensate.

  `L_q = w_q^2 / (2 [H^-1]_qq)`; never above OBD's `H_qq w_q^2 / 2`.

  Args:
    weights: float array `(n,)`.
    inverse: float array `(n, n)`, the inverse Hessian of the live weights.
    mask: bool array `(n,)`, True = live; None if all are live.

  Returns:
    Float array `(n,)` in units of the loss; infinite at masked weights and where the
    diagonal of `inverse` is not positive.

  Example:
    >>> inverse = jnp.diag(jnp.array([0.5, 0.25]))
    >>> obs_saliency(jnp.array([1.0, 1.0]), inverse).tolist()
    [1.0, 2.0]

  Reference: Hassibi and Stork, Second order derivatives for network pruning: optimal
  brain surgeon (1993), Eq. 5.
  """
  _check_square("inverse", inverse, weights.size)
  diagonal = jnp.diagonal(inverse)
  mask = jnp.ones(weights.shape, bool) if mask is None else mask
  # With negative curvature the formula would predict that a deletion lowers the loss.
  safe = mask & (diagonal > 0)
  saliency = weights**2 / (2 * jnp.where(safe, diagonal, jnp.ones_like(diagonal)))
  return jnp.where(safe, saliency, jnp.full_like(saliency, jnp.inf))


def obs_update(weights: jax.Array, inverse: jax.Array, index: jax.Array) -> jax.Array:
  """Deletes one weight and compensates: minimizes the quadratic under `w_q = 0`.

  `w - (w_q / [H^-1]_qq) H^-1 e_q`

  Args:
    weights: float array `(n,)`.
    inverse: float array `(n, n)`.
    index: integer scalar `q`, possibly traced.

  Returns:
    Float array `(n,)`, exactly 0.0 at `index`.

  Example:
    >>> inverse = jnp.array([[1.0, 0.5], [0.5, 1.0]])
    >>> obs_update(jnp.array([2.0, 3.0]), inverse, 0).tolist()
    [0.0, 2.0]

  Reference: Hassibi and Stork (1993), Eq. 5.
  """
  _check_square("inverse", inverse, weights.size)
  _check_index(index, weights.size)
  column = inverse[:, index]
  return (weights - weights[index] / column[index] * column).at[index].set(0)


def downdate_inverse(inverse: jax.Array, index: jax.Array) -> jax.Array:
  """Computes the inverse Hessian without one weight from the full inverse.

  `H^-1 - H^-1 e_q e_q^T H^-1 / [H^-1]_qq`: equal to inverting `H` without row and
  column `q`, at `n^2` instead of `n^3`.

  Args:
    inverse: float array `(n, n)`.
    index: integer scalar `q`, possibly traced.

  Returns:
    Float array `(n, n)`, exactly 0.0 in row and column `index`.

  Example:
    >>> downdate_inverse(jnp.array([[1.0, 0.5], [0.5, 1.0]]), 0).tolist()
    [[0.0, 0.0], [0.0, 0.75]]

  Reference: Frantar and Alistarh, Optimal brain compression (2022), Lemma 1.
  """
  _check_square("inverse", inverse, len(inverse))
  _check_index(index, len(inverse))
  column = inverse[:, index]
  lower = inverse - column[:, None] * column[None, :] / column[index]
  return lower.at[index, :].set(0).at[:, index].set(0)


def _check_square(name: str, matrix: jax.Array, n: int) -> None:
  if jnp.shape(matrix) != (n, n):
    raise ValueError(f"{name} must have shape ({n}, {n}), got {jnp.shape(matrix)}.")


def check_solvable(name: str, array: jax.Array) -> None:
  """Raises ValueError unless linear systems can be solved in an array's dtype."""
  if array.dtype not in (jnp.float32, jnp.float64):
    raise ValueError(f"{name} must be float32 or float64, got {array.dtype}.")


def _check_index(index, n: int) -> None:
  if isinstance(index, jax.Array):
    return
  check_integer("index", index, 0)
  if index >= n:
    raise ValueError(f"index must be below {n}, got {index}.")


class Surgery(NamedTuple):
  """The result of `optimal_brain_surgeon`."""

  weights: jax.Array  # (n,)
  mask: jax.Array  # (n,) bool
  predicted: jax.Array  # scalar, the predicted rise of the loss


def optimal_brain_surgeon(
  weights: jax.Array,
  hessian: jax.Array,
  mask: jax.Array,
  live: jax.Array | int,
  *,
  damping: float = 0.0,
) -> Surgery:
  """Repeatedly deletes the least salient weight and compensates, with one Hessian.

  The Hessian is inverted once and the inverse downdated once per deletion. After every
  deletion the weights are the minimum of the quadratic with all deleted weights zero.
  If no live weight has positive inverse curvature, as with an indefinite Hessian, the
  smallest live weight is deleted without compensation.

  Args:
    weights: float array `(n,)`, exactly 0.0 where masked.
    hessian: float array `(n, n)` at `weights`.
    mask: bool array `(n,)`, True = live.
    live: the number of weights to keep, an integer, possibly traced.
    damping: added to the Hessian's diagonal.

  Returns:
    `Surgery`: weights in their own dtype, a mask of exactly `live` weights (at most as
    many as `mask` has), and the predicted rise of the loss. They are computed in
    float32 or, if an argument is float64, in float64.

  Raises:
    TypeError: `mask` is not bool.
    ValueError: `damping` is negative, `live` is out of range, or `weights` or `hessian`
      is not finite. Under `jit`, such a Hessian gives NaN at live weights instead, in a
      mask of the same count, or the same error through `checkify.checkify`.

  Example:
    >>> hessian = jnp.array([[2.0, 1.0], [1.0, 2.0]])
    >>> result = optimal_brain_surgeon(jnp.array([1.0, 4.0]), hessian,
    ...                                jnp.array([True, True]), 1)
    >>> result.weights.tolist(), result.mask.tolist(), round(float(result.predicted), 4)
    ([0.0, 4.5], [False, True], 0.75)

  Reference: Hassibi and Stork (1993), section 2.
  """
  if not isinstance(live, jax.Array):
    check_integer("live", live, 0)
    if live > weights.size:
      raise ValueError(f"live must be at most {weights.size}, got {live}.")
  check_finite("weights", weights)
  check_number("damping", damping, "be at least 0", lambda v: 0 <= v < np.inf)
  check_masks(mask, "mask")
  _check_square("hessian", hessian, mask.size)
  check_finite("hessian", hessian)
  return _surgery(weights, hessian, mask, live, damping)


# Jitted, because run eagerly the loop compiles at every call.
@jax.jit
def _surgery(weights, hessian, mask, live, damping):
  dtype = statistics_dtype(weights, hessian)
  given, weights, hessian = weights.dtype, weights.astype(dtype), hessian.astype(dtype)
  inverse = _live_inverse(hessian, mask, damping)
  least, largest = jnp.maximum(live, 0), jnp.finfo(dtype).max

  def unfinished(state):
    return jnp.sum(state[1], dtype=jnp.int32) > least

  # Delete the weight of least saliency; without positive inverse curvature, the weight
  # of least magnitude.
  def delete(state):
    weights, mask, inverse, predicted = state
    saliency = obs_saliency(weights, inverse, mask)
    compensable = jnp.any(jnp.isfinite(saliency))
    # Finite for live weights, so that the argmin is a live weight even if all of them
    # are infinite; otherwise the loop would not end.
    size = jnp.minimum(jnp.abs(weights), largest)
    smallest = jnp.argmin(jnp.where(mask, size, jnp.inf))
    index = jnp.where(compensable, jnp.argmin(saliency), smallest)
    without = weights.at[index].set(0)
    plain = hessian[index, index] * weights[index] ** 2 / 2
    compensated = obs_update(weights, inverse, index)
    return (
      jnp.where(mask, jnp.where(compensable, compensated, without), 0),
      mask.at[index].set(False),
      jnp.where(compensable, downdate_inverse(inverse, index), inverse),
      predicted + jnp.where(compensable, saliency[index], plain),
    )

  start = (weights, mask, inverse, jnp.zeros((), weights.dtype))
  weights, mask, _, predicted = jax.lax.while_loop(unfinished, delete, start)
  # A Hessian that is not finite, which cannot raise under `jit`, gives NaN.
  sound = jnp.all(jnp.isfinite(hessian))
  weights = jnp.where(mask, jnp.where(sound, weights, jnp.nan), 0)
  return Surgery(weights.astype(given), mask, predicted)
