"""Compensation of layer-wise OBS: the best live weights of every row, masks given.

Rows are neurons, as in `layerwise_obs`: `weights` is `(rows, n)`, the transpose of a
Dense kernel, and `hessian` is `(n, n)`, shared, or `(rows, n, n)`, one a neuron.
"""

import jax
import jax.numpy as jnp


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
    hessian: float array `(n, n)` or `(rows, n, n)`.
    mask: bool array `(rows, n)`, True = live.
    damping: fraction of the mean diagonal added to the diagonal.
    tolerance: see `solve_live`.

  Returns:
    Float array `(rows, n)`, exactly 0.0 where dead.

  Raises:
    ValueError: shapes do not fit, or `damping` is negative.

  Example:
    >>> h = jnp.array([[2.0, 1.0], [1.0, 2.0]])
    >>> mask = jnp.array([[False, True]])
    >>> compensate(jnp.array([[1.0, 4.0]]), h, mask, damping=0).tolist()
    [[0.0, 4.5]]

  Reference: Kurtic et al., The optimal BERT surgeon (2022), Eq. 4; for one layer,
  Frantar and Alistarh (2022), section 3.
  """
  check_rows(weights, hessian, damping)
  hessian = damped(hessian, damping)
  targets = _product(hessian, weights)
  return solve_live(hessian, targets, mask, tolerance=tolerance)


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
  product, where a factorization a row costs `n^3` for each.

  Args:
    hessian: float array `(n, n)` or `(rows, n, n)`, positive definite.
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
  tiny = jnp.finfo(targets.dtype).tiny
  targets = jnp.where(mask, targets, 0)
  scale = jnp.diagonal(hessian, axis1=-2, axis2=-1).reshape(-1, mask.shape[1])

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
    active = (inner(residual, residual) > enough) & (curvature > tiny)
    rate = jnp.where(active, rho / jnp.maximum(curvature, tiny), 0)
    v = v + rate * direction
    residual = residual - rate * image
    preconditioned = residual / scale
    new = inner(residual, preconditioned)
    direction = preconditioned + new / jnp.maximum(rho, tiny) * direction
    return step + 1, v, residual, direction, new

  first = targets / scale
  start = (0, jnp.zeros_like(targets), targets, first, inner(targets, first))
  return jax.lax.while_loop(unfinished, advance, start)[1]


def check_rows(weights: jax.Array, hessian: jax.Array, damping: float) -> None:
  """Raises `ValueError` unless `weights`, `hessian` and `damping` fit together.

  Example:
    >>> check_rows(jnp.ones((4, 3)), jnp.eye(3), 0.01)
  """
  if weights.ndim != 2:
    raise ValueError(f"weights must have shape (rows, n), got {weights.shape}.")
  rows, n = weights.shape
  if hessian.shape not in ((n, n), (rows, n, n)):
    raise ValueError(
      f"hessian must have shape {(n, n)} or {(rows, n, n)}, got {hessian.shape}."
    )
  if damping < 0:
    raise ValueError(f"damping must be at least 0, got {damping}.")


def _product(hessian, rows):
  if hessian.ndim == 2:
    return rows @ hessian
  return jnp.einsum("rm,rnm->rn", rows, hessian)
