"""Compensation of layer-wise OBS: the best live weights of every row, masks given.

Rows are neurons, as in `layerwise_obs`: `weights` is `(rows, n)`, the transpose of a
Dense kernel, and `hessian` is `(n, n)`, shared, or `(rows, n, n)`, one a neuron.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from sparsejax.core import check_finite, check_masks, check_number, check_value


def statistics_dtype(*arrays: jax.Array) -> Any:
  """Returns the dtype to compute in: float64 if an array has it, else float32.

  Example:
    >>> statistics_dtype(jnp.ones(1, jnp.bfloat16), jnp.ones(1)).__name__
    'float32'
  """
  wide = any(x.dtype == jnp.float64 for x in arrays)
  return jnp.float64 if wide else jnp.float32


def damped(hessian: jax.Array, damping: float) -> jax.Array:
  """A Hessian with `damping * mean(diag H)` added to its diagonal.

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
  """A damped Hessian that has a Cholesky factor even if it is singular.

  `H + damping * mean(diag H) * I`; where a pivot of its factor is below rounding,
  `n * eps * (diag H + mean(diag H) * I)` more (`n * eps * I` if `H = 0`)

  That is all there is of a Hessian without damping in directions that the samples do
  not reach.

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
  n = hessian.shape[-1]
  limits = jnp.finfo(hessian.dtype)
  smallest = n * float(limits.eps)
  hessian = damped(hessian, damping)
  diagonal = jnp.diagonal(hessian, axis1=-2, axis2=-1)
  pivots = jnp.diagonal(jnp.linalg.cholesky(hessian), axis1=-2, axis2=-1) ** 2
  regular = jnp.all(pivots > smallest * diagonal, -1, keepdims=True)
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
  """The best live weights of every row for given masks: OBS's update for a set.

  `argmin_v (v - w)^T H (v - w)` with `v = 0` where dead; deleting the same weights one
  by one with OBS gives the same.

  Args:
    weights: float array `(rows, n)`.
    hessian: float array `(n, n)` or `(rows, n, n)`, positive semidefinite. Where it is
      singular, of the minimizers the one near `weights`: `H = 0` leaves them as they
      are.
    mask: bool array `(rows, n)`, True = live.
    damping: fraction of the mean diagonal added to the diagonal.
    tolerance: see `solve_live`.

  Returns:
    Array `(rows, n)` of the weights' dtype, exactly 0.0 where dead; computed in float32
    or, if an argument is float64, in float64.

  Raises:
    TypeError: `weights` or `hessian` is not floating point, `mask` not bool.
    ValueError: shapes do not fit, `damping` is negative, or a number is not finite.
      Under `jit` a Hessian that is not finite gives NaN at live weights instead, or
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


# Run eagerly, the loop would compile at every call.
@jax.jit
def _compensate(weights, hessian, mask, damping, tolerance):
  dtype = statistics_dtype(weights, hessian)
  values, hessian = weights.astype(dtype), damped(hessian.astype(dtype), damping)
  # What is solved for is the change: without curvature there is none.
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
  """Solves each row's live block, `H_LL v_L = t_L`, with `v = 0` where dead.

  Conjugate gradients, all rows together: with a shared Hessian a step is one matrix
  product, where a factorization a row costs `n^3` for each. A row stops where its
  direction has no curvature above rounding, as in a singular block.

  Args:
    hessian: float array `(n, n)` or `(rows, n, n)`, positive semidefinite.
    targets: float array `(rows, n)`.
    mask: bool array `(rows, n)`.
    tolerance: stop when every row's residual is below this part of its target.
    max_steps: at most so many steps; `2 n` if None.

  Returns:
    Float array `(rows, n)`, exactly 0.0 where dead.

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

  def advance(state):
    step, v, residual, direction, rho = state
    image = jnp.where(mask, _product(hessian, direction), 0)
    curvature = inner(direction, image)
    # A row that has converged must stand still: its rounding errors would grow.
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
  """Raises unless `weights`, `hessian` and `damping` fit together and are finite.

  Raises:
    TypeError: `weights` or `hessian` is not floating point, `damping` not a number.
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
  """Raises ValueError unless a Hessian's factor is finite, as of one that is PSD.

  Args:
    factor: what was computed from `hessian`; NaN where that has no Cholesky factor.
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
