"""The magnitude of the gradient."""

import jax
import jax.numpy as jnp

from sparsejax.core import PyTree, ScoreInputs


def gradient(inputs: ScoreInputs) -> PyTree:
  """Returns the magnitude of this step's gradient, for masked weights too.

  s = |dL/dw|

  Args:
    inputs: the `ScoreInputs` of the mask update.

  Returns:
    tree of floats, of the gradients' shapes and dtypes.

  References:
    Evci et al. 2020, "Rigging the lottery", section 3 (growth).

  Example:
    >>> import sparsejax as sj
    >>> tx = sj.grow(sj.gradient)
  """
  return jax.tree.map(jnp.abs, inputs.grads)
