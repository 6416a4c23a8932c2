"""The magnitude of the weight."""

import jax
import jax.numpy as jnp

from sparsejax.core import PyTree, ScoreInputs


def magnitude(inputs: ScoreInputs) -> PyTree:
  """Returns the magnitude of each weight.

  s = |w|

  Args:
    inputs: the `ScoreInputs` of the mask update.

  Returns:
    tree of floats, of the weights' shapes and dtypes.

  References:
    Han et al. 2015, "Learning both weights and connections".

  Example:
    >>> import sparsejax as sj
    >>> tx = sj.drop(sj.magnitude, 0.5)
  """
  return jax.tree.map(jnp.abs, inputs.params)
