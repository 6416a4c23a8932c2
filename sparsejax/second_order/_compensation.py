"""Compensation in layer-wise OBS: the optimal live weights of every row, masks given.

Rows are output neurons, as in `_layerwise_obs`: `weights` is `(rows, n)`, the transpose
of a Dense kernel, and `hessian` is `(n, n)`, shared by all rows, or `(rows, n, n)`, one
per row.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from sparsejax.core import check_finite, check_masks, check_number, check_value


def statistics_dtype(*arrays: jax.Array) -> Any:
  """Returns the dtype to compute in: float64 if any array has it, else float32.

  Example:
    >>> statistics_dtype(jnp.ones(1, jnp.bfloat16), jnp.ones(1)).__name__
    'float32'
  """
  wide = any(x.dtype == jnp.float64 for x in arrays)
  return jnp.float64 if wide else jnp.float32


def damped(hessian: jax.Array, damping: float) -> jax.Array:
  """Adds a fraction of a Hessian's mean diagonal to its diagonal.

  `H + damping * mean(diag H) * I`

  Args:
    hessian: float array `(..., n, n)`.
    damping: fraction of the mean diagonal.

  Returns:
    Float array `(..., n, n)`.

  Example:
    >>> damped(jnp.diag(jnp.array([1.0, 3.0])), 0.5).tolist()
    [[2.0, 0.0], [0.0, 4.0]]
  """
  n = hessian.shape[-1]
  mean = jnp.trace(hessian, axis1=-2, axis2=-1) / n
  eye = jnp.eye(n, dtype=hessian.dtype)
  eye = eye.reshape((1,) * (hessian.ndim - 2) + (n, n))
  return hessian + damping * mean[..., None, None] * eye


def regularized(hessian: jax.Array, damping: float) -> jax.Array:
  """Damps a Hessian so that it has a Cholesky factor even if it is singular.

  `H + damping * mean(diag H) * I`; if a pivot of its factor is below rounding, also
  `+ n * eps * (diag H + mean(diag H) * I)` (`+ n * eps * I` if `H = 0`)

  Without damping, a Hessian from few samples is zero in the directions that the samples
  do not span. The second term is then the only curvature in these directions.

  Args:
    hessian: float array `(..., n, n)`, positive semidefinite.
    damping: fraction of the mean diagonal.

  Returns:
    Float array `(..., n, n)`.

  Example:
    >>> singular = jnp.ones((2, 2))
    >>> bool(jnp.isfinite(jnp.linalg.cholesky(regularized(singular, 0.0))).all())
    True
  """
  # A Hessian is regular if every squared pivot exceeds rounding, relative to the
  # diagonal; a NaN pivot of a failed factorization compares false.
  n = hessian.shape[-1]
  limits = jnp.finfo(hessian.dtype)
  smallest = n * float(limits.eps)
  hessian = damped(hessian, damping)
  diagonal = jnp.diagonal(hessian, axis1=-2, axis2=-1)
  pivots = jnp.diagonal(jnp.linalg.cholesky(hessian), axis1=-2, axis2=-1) ** 2
  regular = jnp.all(pivots > smallest * diagonal, -1, keepdims=True)
  # Raise the diagonal of a singular Hessian by rounding errors of its own scale.
  mean = jnp.mean(diagonal, -1, keepdims=True)
  unit = jnp.where(mean > limits.tiny / limits.eps, diagonal + mean, 1)
  floor = jnp.where(regular, 0, smallest * unit)
  eye = jnp.eye(n, dtype=hessian.dtype).reshape((1,) * (hessian.ndim - 2) + (n, n))
  return hessian + floor[..., None] * eye


def compensate(
  weights: jax.Array,
  hessian: jax.Array,
  mask: jax.Array,
  *,
  damping: float = 0.01,
  tolerance: float = 1e-6,
) -> jax.Array:
  """Computes the optimal live weights of every row for given masks.

  `argmin_v (v - w)^T H (v - w)` with `v = 0` where dead; deleting the same weights one
  by one with OBS gives the same.

  Args:
    weights: float array `(rows, n)`.
    hessian: float array `(n, n)` or `(rows, n, n)`, positive semidefinite. If it is
      singular, the result is a minimizer near `weights`: `H = 0` leaves them unchanged.
    mask: bool array `(rows, n)`, True = live.
    damping: fraction of the mean diagonal added to the diagonal.
    tolerance: see `solve_live`.

  Returns:
    Array `(rows, n)` of the weights' dtype, exactly 0.0 where masked. It is computed in
    float32 or, if an argument is float64, in float64.

  Raises:
    TypeError: `weights` or `hessian` is not floating point, or `mask` is not bool.
    ValueError: shapes do not fit, `damping` is negative, or a number is not finite.
      Under `jit`, a Hessian that is not finite gives NaN at live weights instead, or
      the same error through `checkify.checkify`.

  Example:
    >>> h = jnp.array([[2.0, 1.0], [1.0, 2.0]])
    >>> mask = jnp.array([[False, True]])
    >>> compensate(jnp.array([[1.0, 4.0]]), h, mask, damping=0).tolist()
    [[0.0, 4.5]]

  Reference: Kurtic et al., The optimal BERT surgeon (2022), Eq. 4; for one layer,
  Frantar and Alistarh (2022), section 3.
  """
  check_rows(weights, hessian, damping)
  check_masks(mask, "mask")
  if mask.shape != weights.shape:
    raise ValueError(
      f"mask must have the shape of weights {weights.shape}, got {mask.shape}."
    )
  return _compensate(weights, hessian, mask, damping, tolerance)


# Jitted, because run eagerly the loop compiles at every call.
@jax.jit
def _compensate(weights, hessian, mask, damping, tolerance):
  dtype = statistics_dtype(weights, hessian)
  values, hessian = weights.astype(dtype), damped(hessian.astype(dtype), damping)
  # Solve for the change of the live weights, H_LL dv = H_LD w_D. It is zero where there
  # is no curvature, so that weights stay as they are in singular directions.
  lost = _product(hessian, jnp.where(mask, 0, values))
  change = solve_live(hessian, lost, mask, tolerance=tolerance)
  sound = jnp.all(jnp.isfinite(hessian), (-2, -1)).reshape(-1, 1)
  live = jnp.where(sound, values + change, jnp.nan)
  return jnp.where(mask, live, 0).astype(weights.dtype)


def solve_live(
  hessian: jax.Array,
  targets: jax.Array,
  mask: jax.Array,
  *,
  tolerance: float = 1e-6,
  max_steps: int | None = None,
) -> jax.Array:
  """Solves the linear system of each row's live weights.

  `H_LL v_L = t_L`, with `v = 0` where masked.

  All rows are solved together by conjugate gradients with a diagonal preconditioner.
  With a shared Hessian one step is one matrix product, whereas a factorization per row
  would cost `n^3` per row. A row stops when its search direction has no curvature above
  rounding, as in a singular block.

  Args:
    hessian: float array `(n, n)` or `(rows, n, n)`, positive semidefinite.
    targets: float array `(rows, n)`.
    mask: bool array `(rows, n)`, True = live.
    tolerance: stops when the norm of every row's residual, relative to that of its
      target, is at most this.
    max_steps: the maximum number of steps; None for `2 n`.

  Returns:
    Float array `(rows, n)`, exactly 0.0 where masked.

  Example:
    >>> h = jnp.array([[2.0, 1.0], [1.0, 2.0]])
    >>> mask = jnp.array([[True, False]])
    >>> solve_live(h, jnp.array([[4.0, 5.0]]), mask).tolist()
    [[2.0, 0.0]]
  """
  limit = 2 * mask.shape[1] if max_steps is None else max_steps
  tiny, eps = jnp.finfo(targets.dtype).tiny, float(jnp.finfo(targets.dtype).eps)
  targets = jnp.where(mask, targets, 0)
  scale = jnp.diagonal(hessian, axis1=-2, axis2=-1).reshape(-1, mask.shape[1])
  scale = jnp.where(scale > tiny, scale, 1)

  def inner(a, b):
    return jnp.sum(a * b, 1, keepdims=True)

  enough = tolerance**2 * inner(targets, targets)

  def unfinished(state):
    step, _, residual, _, _ = state
    return (step < limit) & jnp.any(inner(residual, residual) > enough)

  # One step of preconditioned conjugate gradients, for all rows at once.
  def advance(state):
    step, v, residual, direction, rho = state
    image = jnp.where(mask, _product(hessian, direction), 0)
    curvature = inner(direction, image)
    # Rows that have converged, or have no curvature left, are not updated further, as
    # their rounding errors would grow. `jax.scipy.sparse.linalg.cg` updates them: with
    # a tolerance below rounding, weights of singular blocks grow a thousandfold.
    flat = mask.shape[1] * eps * inner(direction, scale * direction)
    curved = curvature > jnp.maximum(flat, tiny)
    active = (inner(residual, residual) > enough) & curved
    rate = jnp.where(active, rho / jnp.maximum(curvature, tiny), 0)
    v = v + rate * direction
    residual = jnp.where(curved, residual - rate * image, 0)
    preconditioned = residual / scale
    new = inner(residual, preconditioned)
    direction = preconditioned + new / jnp.maximum(rho, tiny) * direction
    return step + 1, v, residual, direction, new

  first = targets / scale
  start = (0, jnp.zeros_like(targets), targets, first, inner(targets, first))
  return jax.lax.while_loop(unfinished, advance, start)[1]


def check_rows(weights: jax.Array, hessian: jax.Array, damping: float) -> None:
  """Raises an error unless weights, Hessian and damping fit together and are finite.

  Raises:
    TypeError: `weights` or `hessian` is not floating point, or `damping` is not a
      number.
    ValueError: shapes do not fit, `damping` is negative, or a number is not finite.

  Example:
    >>> check_rows(jnp.ones((4, 3)), jnp.eye(3), 0.01)
  """
  for name, value in (("weights", weights), ("hessian", hessian)):
    if not jnp.issubdtype(value.dtype, jnp.floating):
      raise TypeError(f"{name} must be floating point, got {value.dtype}.")
  if weights.ndim != 2:
    raise ValueError(f"weights must have shape (rows, n), got {weights.shape}.")
  rows, n = weights.shape
  if hessian.shape not in ((n, n), (rows, n, n)):
    raise ValueError(
      f"hessian must have shape {(n, n)} or {(rows, n, n)}, got {hessian.shape}."
    )
  check_number("damping", damping, "be at least 0", lambda v: 0 <= v < float("inf"))
  check_finite("weights", weights)
  check_finite("hessian", hessian)


def check_factor(factor: jax.Array, hessian: jax.Array) -> None:
  """Raises ValueError unless a Hessian is positive semidefinite.

  Args:
    factor: an array computed from the Cholesky factor of `hessian`; it contains NaN if
      the factorization failed.
    hessian: float array `(..., n, n)`.
  """
  rule = "hessian must be positive semidefinite"
  sound = jnp.all(jnp.isfinite(factor))
  if isinstance(sound, Tracer):
    check_value(sound, f"{rule}.")
  elif not sound:
    least = float(jnp.min(jnp.linalg.eigvalsh(hessian)))
    raise ValueError(f"{rule}, got an eigenvalue of {least:.3g}.")


def _product(hessian, rows):
  if hessian.ndim == 2:
    return rows @ hessian
  return jnp.einsum("rm,rnm->rn", rows, hessian)
