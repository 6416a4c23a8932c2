"""Levenberg-Marquardt on a masked weight vector, for small networks.

The second-order pruning formulas hold at a minimum of the loss, which gradient descent
does not reach in practice.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core import check_callable, check_integer, check_masks, check_number
from sparsejax.second_order._obs import check_solvable


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

  `(J^T J / m + (decay + mu) I) step = -(J^T r / m + decay w)`

  If a step lowers the loss, it is taken and `mu` is divided by three. Otherwise it is
  rejected and `mu` is doubled.

  Args:
    residuals: `weights (n,) -> (m,)`.
    weights: float array `(n,)`.
    mask: bool array `(n,)`, True = live.
    decay: weight decay, at least 0.
    steps: the number of steps, rejected ones included.
    damping: the initial `mu`.

  Returns:
    Float array `(n,)`, exactly 0.0 where masked.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: `decay` is negative, `damping` is not above 0, `steps` is below 1, or
      `mask` has a different shape than `weights`, which must be float32 or float64.

  Example:
    >>> w = levenberg_marquardt(lambda w: w - 2, jnp.ones(2), jnp.array([True, False]))
    >>> [round(x, 3) for x in w.tolist()]
    [2.0, 0.0]

  Reference: Marquardt, An algorithm for least-squares estimation of nonlinear
  parameters (1963).
  """
  check_callable("residuals", residuals, "a function of the weights", 1)
  check_masks(mask, "mask")
  if mask.shape != weights.shape:
    raise ValueError(
      f"mask must have the shape of weights {weights.shape}, got {mask.shape}."
    )
  check_solvable("weights", weights)
  check_number("decay", decay, "be at least 0", lambda v: 0 <= v < np.inf)
  check_integer("steps", steps, 1)
  check_number("damping", damping, "be above 0", lambda v: 0 < v < np.inf)
  eye = jnp.eye(weights.size, dtype=weights.dtype)
  live = mask[:, None] & mask[None, :]

  def loss(w):
    return (jnp.mean(residuals(w) ** 2) + decay * jnp.sum(w**2)) / 2

  def step(state, _):
    w, mu, value = state
    r, jacobian = residuals(w), jax.jacrev(residuals)(w)
    gradient = jacobian.T @ r / r.size + decay * w
    matrix = jacobian.T @ jacobian / r.size + (decay + mu) * eye
    # Identity rows and a zero right-hand side keep the masked weights at zero.
    delta = jnp.linalg.solve(
      jnp.where(live, matrix, eye), jnp.where(mask, -gradient, 0)
    )
    # Take the step only if it lowers the loss, and adapt the damping.
    trial = jnp.where(mask, w + delta, 0)
    trial_value = loss(trial)
    better = trial_value < value
    mu = jnp.clip(jnp.where(better, mu / 3, mu * 2), 1e-15, 1e6)
    state = (jnp.where(better, trial, w), mu, jnp.where(better, trial_value, value))
    return state, None

  weights = jnp.where(mask, weights, 0)
  start = (weights, jnp.asarray(damping, weights.dtype), loss(weights))
  return jax.lax.scan(step, start, length=steps)[0][0]
