"""The magnitude of the momentum."""

import jax
import jax.numpy as jnp

from sparsejax.core import PyTree, ScoreInputs

_EPS = 1e-8


def momentum(inputs: ScoreInputs) -> PyTree:
  """The magnitude of the inner optimizer's momentum, dead weights included.

  s = |m|, or |m| / (sqrt(v) + 1e-8) under Adam and its relatives (no bias
  correction, as in the reference implementation)

  Divided in float32 at least. Where a second moment is negative anywhere it is none,
  and s = |m|.

  Args:
    inputs: what scores may look at.

  Returns:
    tree of floats, of the moments' shapes; of the dtype of m, or float32 at least where
    it is divided.

  References:
    Dettmers & Zettlemoyer 2019, "Sparse networks from scratch", section 3.

  Example:
    >>> import sparsejax as sj
    >>> tx = sj.grow(sj.momentum)
  """
  first, treedef = jax.tree.flatten(inputs.moments.first)
  second = treedef.flatten_up_to(inputs.moments.second)
  scores_are_finite = never_negative(second)

  def score(m, v):
    if v is None:
      return jnp.abs(m)
    with jax.numpy_dtype_promotion("standard"):
      dtype = jnp.promote_types(jnp.promote_types(m.dtype, v.dtype), jnp.float32)
    size, v = jnp.abs(m).astype(dtype), v.astype(dtype)
    root = jnp.sqrt(jnp.maximum(v, 0)) + jnp.asarray(_EPS, dtype)
    return size / jnp.where(scores_are_finite, root, jnp.ones_like(root))

  return treedef.unflatten(score(m, v) for m, v in zip(first, second, strict=True))


def never_negative(second: list) -> jax.Array:
  """Returns whether second moments can be means of squares: none is negative.

  Asked of all layers at once, for their scores are compared. NaN passes, so that the
  mask update is skipped and counted.

  Args:
    second: arrays, and None where there is none.

  Returns:
    bool scalar.
  """
  flags = [jnp.all(~(v < 0)) for v in second if v is not None]
  return jnp.all(jnp.stack(flags)) if flags else jnp.asarray(True)
