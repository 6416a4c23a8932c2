"""The movement score: the change of a weight's magnitude by gradient descent."""

import jax

from sparsejax.core import PyTree, ScoreInputs


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
    tree of floats of either sign, of the weights' shapes and dtypes.

  References:
    Sanh et al. 2020, "Movement pruning: adaptive sparsity by fine-tuning", eq. 3.

  Example:
    >>> import sparsejax as sj
    >>> tx = sj.drop(sj.movement, 0.3)
  """
  return jax.tree.map(lambda w, g: -w * g.astype(w.dtype), inputs.params, inputs.grads)
