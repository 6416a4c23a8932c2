"""The magnitude of the momentum."""

import jax
import jax.numpy as jnp

from sparsejax.core import PyTree, ScoreInputs

_EPS = 1e-8


def momentum(inputs: ScoreInputs) -> PyTree:
  """Returns the magnitude of the inner optimizer's momentum, for masked weights too.

  s = |m|, or |m| / (sqrt(v) + 1e-8) under Adam and its relatives (no bias
  correction, as in the reference implementation)

  The division is done in float32 or wider. Scores of different layers are compared, so
  s = |m| in all layers if a layer has no second moment, or if any entry of a second
  moment is negative, for then it is not a mean of squares.

  Args:
    inputs: the `ScoreInputs` of the mask update.

  Returns:
    tree of floats, of the moments' shapes. The dtype is that of m where there is no
    second moment, and float32 or wider elsewhere.

  Raises:
    ValueError: a layer has no first moment.

  References:
    Dettmers & Zettlemoyer 2019, "Sparse networks from scratch", section 3.

  Example:
    >>> import sparsejax as sj
    >>> tx = sj.grow(sj.momentum)
  """
  first, treedef = jax.tree.flatten(inputs.moments.first)
  if len(first) < len(jax.tree.leaves(inputs.params)):
    raise ValueError(
      "momentum_decay must be a number where no state of the inner optimizer has the "
      "first moments of all sparsified leaves, got None: sj.momentum compares leaves; "
      "set it in sj.sparsify, for instance to 0.9."
    )
  second = of_all_or_none(treedef.flatten_up_to(inputs.moments.second))
  usable = never_negative(second)

  def score(m, v):
    if v is None:
      return jnp.abs(m)
    with jax.numpy_dtype_promotion("standard"):
      dtype = jnp.promote_types(jnp.promote_types(m.dtype, v.dtype), jnp.float32)
    size, v = jnp.abs(m).astype(dtype), v.astype(dtype)
    root = jnp.sqrt(jnp.maximum(v, 0)) + jnp.asarray(_EPS, dtype)
    return size / jnp.where(usable, root, jnp.ones_like(root))

  return treedef.unflatten(score(m, v) for m, v in zip(first, second, strict=True))


def of_all_or_none(second: list) -> list:
  """Returns second moments of all layers, or None for all of them.

  Scores made with second moments and without are not comparable.

  Args:
    second: one array per layer, or None where a layer has no second moment.

  Returns:
    The list itself, or one None per layer if any entry is None.
  """
  return [None] * len(second) if any(v is None for v in second) else second


def never_negative(second: list) -> jax.Array:
  """Returns whether second moments can be means of squares: none is negative.

  The answer is one for all layers, because scores of different layers are compared. NaN
  passes, so that the mask update is skipped and counted.

  Args:
    second: one array per layer, or None where a layer has no second moment.

  Returns:
    bool scalar.
  """
  flags = [jnp.all(~(v < 0)) for v in second if v is not None]
  return jnp.all(jnp.stack(flags)) if flags else jnp.asarray(True)
