"""Optimal brain damage: the predicted cost of deleting each weight alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.core import ScoreInputs, check_arrays, widened

Score = Callable[[ScoreInputs], Any]


def obd_saliency(params: Any, diagonal: Any) -> Any:
  """Predicts the increase of the loss when one weight is set to zero.

  `s_k = h_k w_k^2 / 2`, for a network at a minimum with a diagonal Hessian. Negative
  curvature (noise of an estimate, or a point that is not a minimum) counts as zero.

  Args:
    params: pytree of float arrays.
    diagonal: pytree like `params`: the diagonal of the Hessian, or an approximation.

  Returns:
    A pytree like `params`, non-negative, in units of loss; float32 for 16-bit params.

  Example:
    >>> obd_saliency(jnp.array([1.0, -2.0]), jnp.array([4.0, 0.5])).tolist()
    [2.0, 1.0]

  Reference: LeCun, Denker and Solla, Optimal brain damage (1990), Eq. 3.
  """

  def saliency(w, h):
    w = widened(w)
    return jnp.maximum(h.astype(w.dtype), 0) * w**2 / 2

  return jax.tree.map(saliency, params, diagonal)


def obd(diagonal: Any) -> Score:
  """Makes the optimal brain damage score from a given Hessian diagonal.

  s = h w^2 / 2, with `h` given and `w` the current weights. Negative `h` counts as 0.

  Args:
    diagonal: pytree like the params: the diagonal of the Hessian, or an approximation.
      It stays constant after the score is built.

  Returns:
    A score; for `drop`, `prune_to` and similar transforms.

  Raises:
    TypeError: `diagonal` is not a tree of arrays.

  Example:
    >>> from sparsejax.core import Moments
    >>> score = obd(jnp.array([4.0, 0.5]))
    >>> moments = Moments(None, None)
    >>> w = jnp.array([1.0, -2.0])
    >>> score(ScoreInputs(w, w, moments, w > 0, jax.random.key(0), 0)).tolist()
    [2.0, 1.0]

  Reference: LeCun, Denker and Solla, Optimal brain damage (1990), Eq. 3.
  """
  check_arrays("diagonal", diagonal)

  def score(inputs: ScoreInputs) -> Any:
    # Params are None at leaves that are not sparsified; the diagonal has arrays there.
    return jax.tree.map(
      lambda w, h: None if w is None else obd_saliency(w, h),
      inputs.params,
      diagonal,
      is_leaf=lambda leaf: leaf is None,
    )

  return score
