"""A random score."""

import jax

from sparsejax.core import PyTree, ScoreInputs, leaf_keys, uniform_like


def random(inputs: ScoreInputs) -> PyTree:
  """A fresh uniform draw for every weight.

  s ~ U[0, 1)

  Args:
    inputs: what scores may look at.

  Returns:
    tree of float32, of the weights' shapes; the values do not depend on how the
    weights are sharded.

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
