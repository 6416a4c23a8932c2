"""The first-order Taylor score."""

import jax
import jax.numpy as jnp

from sparsejax.core import PyTree, ScoreInputs, widened


def taylor(inputs: ScoreInputs) -> PyTree:
  """Estimates the change of the loss, to first order, when a weight is set to zero.

  s = |w dL/dw|

  The score is zero for every masked weight, so it can rank weights to drop or prune but
  not weights to grow. Its square, which Molchanov et al. use, gives the same ranking.
  Without the absolute value, -w dL/dw is `movement`.

  Args:
    inputs: the `ScoreInputs` of the mask update.

  Returns:
    tree of float32 (float64 for float64 weights), of the weights' shapes, in units
    of loss.

  References:
    Mozer & Smolensky 1989, "Skeletonization". Molchanov et al. 2019, "Importance
    estimation for neural network pruning", eq. 8. At initialization: Lee et al. 2019,
    "SNIP", eq. 6.

  Example:
    >>> import sparsejax as sj
    >>> tx = sj.drop(sj.taylor, 0.3)
  """

  # Products of 16-bit floats would round to equal values, or to zero.
  def score(w, g):
    w = widened(w)
    return jnp.abs(w * g.astype(w.dtype))

  return jax.tree.map(score, inputs.params, inputs.grads)
