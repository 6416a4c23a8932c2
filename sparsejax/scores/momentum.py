"""The magnitude of the momentum."""

import jax
import jax.numpy as jnp

from sparsejax.core.types import PyTree, ScoreInputs

_EPS = 1e-8


def momentum(inputs: ScoreInputs) -> PyTree:
  """The magnitude of the inner optimizer's momentum, dead weights included.

  s = |m|, or |m| / (sqrt(v) + 1e-8) under Adam and its relatives (no bias
  correction, as in the reference implementation)

  Args:
    inputs: what scores may look at.

  Returns:
    tree of floats, of the moments' shapes and dtypes.

  References:
    Dettmers & Zettlemoyer 2019, "Sparse networks from scratch", section 3.

  Example:
    >>> import sparsejax as sj
    >>> tx = sj.grow(sj.momentum)
  """
  first, treedef = jax.tree.flatten(inputs.moments.first)
  second = treedef.flatten_up_to(inputs.moments.second)
  scores = [
    jnp.abs(m) if v is None else jnp.abs(m) / (jnp.sqrt(v) + jnp.asarray(_EPS, v.dtype))
    for m, v in zip(first, second, strict=True)
  ]
  return treedef.unflatten(scores)
