"""The movement of the weight in this step."""

import jax

from sparsejax.core import PyTree, ScoreInputs


def movement(inputs: ScoreInputs) -> PyTree:
  """Whether gradient descent moves the weight away from zero, and how strongly.

  s = -w dL/dw

  Positive where a step makes the weight larger, negative where it shrinks it: a small
  weight that grows is worth more than a large one on its way to zero. Zero for every
  dead weight. This is the score of one step; movement pruning sums it over training.

  Args:
    inputs: what scores may look at.

  Returns:
    tree of floats of either sign, of the weights' shapes and dtypes.

  References:
    Sanh et al. 2020, "Movement pruning: adaptive sparsity by fine-tuning", eq. 3.

  Example:
    >>> import sparsejax as sj
    >>> tx = sj.drop(sj.movement, 0.3)
  """
  return jax.tree.map(lambda w, g: -w * g.astype(w.dtype), inputs.params, inputs.grads)
