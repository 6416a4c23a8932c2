"""The magnitude of the weight plus that of its gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core import PyTree, Score, ScoreInputs, check_number, widened


def magnitude_and_gradient(gradient_weight: float) -> Score:
  """Adds the magnitude of the gradient to that of the weight.

  s = |w| + gradient_weight |dL/dw|

  A small weight that still moves fast ranks above one that has come to rest.

  Args:
    gradient_weight: the factor of the gradient, at least 0, in units of weight per
      gradient.

  Returns:
    A score: tree of float32 (float64 for float64 weights), of the weights' shapes.

  Raises:
    TypeError: `gradient_weight` is not a number.
    ValueError: `gradient_weight` is negative or not finite.

  References:
    Yuan et al. 2021, "MEST: accurate and fast memory-economic sparse training framework
    on the edge".

  Example:
    >>> import sparsejax as sj
    >>> transform = sj.drop(sj.magnitude_and_gradient(0.01), 0.3)
  """
  check_number(
    "gradient_weight", gradient_weight, "be at least 0", lambda v: 0 <= v < np.inf
  )

  def score(inputs: ScoreInputs) -> PyTree:
    def add(w, g):
      w = widened(w)
      factor = jnp.asarray(gradient_weight).astype(w.dtype)
      return jnp.abs(w) + factor * jnp.abs(g.astype(w.dtype))

    return jax.tree.map(add, inputs.params, inputs.grads)

  return score
