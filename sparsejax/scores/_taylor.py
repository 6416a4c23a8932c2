"""The first-order Taylor score."""

import jax
import jax.numpy as jnp

from sparsejax.core import PyTree, ScoreInputs


def taylor(inputs: ScoreInputs) -> PyTree:
  """How much the loss changes, to first order, when the weight is set to zero.

  s = |w dL/dw|

  Zero for every dead weight: it says what to drop or prune, never what to grow. Its
  square, which Molchanov et al. use, ranks the same; its negative with the sign kept
  is `movement`.

  Args:
    inputs: what scores may look at.

  Returns:
    tree of floats, of the weights' shapes and dtypes, in units of loss.

  References:
    Mozer & Smolensky 1989, "Skeletonization". Molchanov et al. 2019, "Importance
    estimation for neural network pruning", eq. 8. At initialization: Lee et al. 2019,
    "SNIP", eq. 6.

  Example:
    >>> import sparsejax as sj
    >>> tx = sj.drop(sj.taylor, 0.3)
  """
  return jax.tree.map(
    lambda w, g: jnp.abs(w * g.astype(w.dtype)), inputs.params, inputs.grads
  )
