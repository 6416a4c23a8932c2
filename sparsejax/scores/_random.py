"""A random score."""

import jax

from sparsejax.core import PyTree, ScoreInputs, leaf_keys, uniform_like


def random(inputs: ScoreInputs) -> PyTree:
  """Draws a new uniform number for every weight.

  s ~ U[0, 1)

  Args:
    inputs: the `ScoreInputs` of the mask update.

  Returns:
    tree of float32, of the weights' shapes. The values do not depend on the sharding of
    the weights.

  References:
    Mocanu et al. 2018 (growth in sparse evolutionary training).

  Example:
    >>> import sparsejax as sj
    >>> tx = sj.grow(sj.random)
  """
  leaves, treedef = jax.tree.flatten(inputs.params)
  keys = leaf_keys(inputs.key, inputs.params)
  return treedef.unflatten(
    uniform_like(key, leaf) for key, leaf in zip(keys, leaves, strict=True)
  )
