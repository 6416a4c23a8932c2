"""Levenberg-Marquardt on a masked weight vector: trains small nets to a true minimum.

The second-order formulas hold at a minimum; gradient descent does not get there.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def levenberg_marquardt(
  residuals: Callable[[jax.Array], jax.Array],
  weights: jax.Array,
  mask: jax.Array,
  *,
  decay: float = 0.0,
  steps: int = 100,
  damping: float = 1e-2,
) -> jax.Array:
  """Minimizes `mean(r(w)^2) / 2 + decay |w|^2 / 2` over the live weights.

  `(J^T J / m + (decay + mu) I) step = -(J^T r / m + decay w)`; a step that does not
  lower the loss is not taken, and `mu` is doubled; otherwise `mu` is divided by three.

  Args:
    residuals: `weights (n,) -> (m,)`.
    weights: float array `(n,)`.
    mask: bool array `(n,)`, True = live.
    decay: weight decay, at least 0.
    steps: how many steps are tried.
    damping: the first `mu`.

  Returns:
    Float array `(n,)`, exactly 0.0 where dead.

  Raises:
    ValueError: `decay` is negative or `steps` below 1.

  Example:
    >>> w = levenberg_marquardt(lambda w: w - 2, jnp.ones(2), jnp.array([True, False]))
    >>> [round(x, 3) for x in w.tolist()]
    [2.0, 0.0]

  Reference: Marquardt, An algorithm for least-squares estimation of nonlinear
  parameters (1963).
  """
  if decay < 0:
    raise ValueError(f"decay must be at least 0, got {decay}.")
  if steps < 1:
    raise ValueError(f"steps must be at least 1, got {steps}.")
  eye = jnp.eye(weights.size, dtype=weights.dtype)
  live = mask[:, None] & mask[None, :]

  def loss(w):
    return (jnp.mean(residuals(w) ** 2) + decay * jnp.sum(w**2)) / 2

  def step(state, _):
    w, mu, value = state
    r, jacobian = residuals(w), jax.jacrev(residuals)(w)
    gradient = jacobian.T @ r / r.size + decay * w
    matrix = jacobian.T @ jacobian / r.size + (decay + mu) * eye
    delta = jnp.linalg.solve(
      jnp.where(live, matrix, eye), jnp.where(mask, -gradient, 0)
    )
    trial = jnp.where(mask, w + delta, 0)
    trial_value = loss(trial)
    better = trial_value < value
    mu = jnp.clip(jnp.where(better, mu / 3, mu * 2), 1e-15, 1e6)
    state = (jnp.where(better, trial, w), mu, jnp.where(better, trial_value, value))
    return state, None

  weights = jnp.where(mask, weights, 0)
  start = (weights, jnp.asarray(damping, weights.dtype), loss(weights))
  return jax.lax.scan(step, start, length=steps)[0][0]
