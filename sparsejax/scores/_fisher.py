"""The diagonal Fisher score, computed from the optimizer's second moment."""

import jax
import jax.numpy as jnp

from sparsejax.core import PyTree, ScoreInputs, widened
from sparsejax.scores._momentum import never_negative, of_all_or_none


def fisher(inputs: ScoreInputs) -> PyTree:
  """Estimates the cost of deleting each weight, with the Fisher diagonal as curvature.

  s = v w^2 / 2, with v the second moment of Adam and its relatives; (dL/dw)^2 in all
  layers if one has no second moment, or has a negative one, which a mean of squares
  never is

  v averages squared batch gradients over steps. At batch size n it is n times smaller
  than the mean of the examples' squared gradients; the ranking is the same. For the
  mean over examples use `sj.obd` with `empirical_fisher_diagonal`. The score is zero
  for every masked weight.

  Args:
    inputs: the `ScoreInputs` of the mask update.

  Returns:
    tree of float32 (float64 for float64 weights), of the weights' shapes.

  References:
    Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning",
    eq. 5.

  Example:
    >>> import sparsejax as sj
    >>> tx = sj.drop(sj.fisher, 0.3)
  """
  params, treedef = jax.tree.flatten(inputs.params)
  grads = jax.tree.leaves(inputs.grads)
  second = of_all_or_none(treedef.flatten_up_to(inputs.moments.second))
  usable = never_negative(second)
  scores = []
  for w, g, v in zip(map(widened, params), grads, second, strict=True):
    curvature = g.astype(w.dtype) ** 2
    if v is not None:
      curvature = jnp.where(usable, v.astype(w.dtype), curvature)
    scores.append(curvature * w**2 / 2)
  return treedef.unflatten(scores)
