"""The movement score: the change of a weight's magnitude by gradient descent."""

import jax

from sparsejax.core import PyTree, ScoreInputs, widened


def movement(inputs: ScoreInputs) -> PyTree:
  """Measures how strongly gradient descent moves each weight away from zero.

  s = -w dL/dw

  The score is positive where a step increases the weight's magnitude, and negative
  where it decreases it: a small weight that increases scores higher than a large one
  that decreases. It is zero for every masked weight. This is the score of one step;
  movement pruning sums it over training.

  Args:
    inputs: the `ScoreInputs` of the step.

  Returns:
    tree of float32 of either sign (float64 for float64 weights), of the weights'
    shapes.

  References:
    Sanh et al. 2020, "Movement pruning: adaptive sparsity by fine-tuning", eq. 3.

  Example:
    >>> import sparsejax as sj
    >>> tx = sj.drop(sj.movement, 0.3)
  """

  # Products of 16-bit floats would round to equal values, or to zero.
  def score(w, g):
    w = widened(w)
    return -w * g.astype(w.dtype)

  return jax.tree.map(score, inputs.params, inputs.grads)
