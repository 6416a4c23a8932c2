"""Noise on another score."""

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core import (
  PyTree,
  Score,
  ScoreInputs,
  check_number,
  check_score,
  leaf_keys,
  uniform_like,
)

# Apart from the keys of `random`, which may stand in the same chain.
_SALT = 0x6E6F6973


def noisy(score: Score, deviation: float) -> Score:
  """Adds Gaussian noise to a score.

  s + deviation * N(0, 1)

  Args:
    score: any score.
    deviation: standard deviation of the noise, in the score's own unit.

  Returns:
    A score; float32 at least, fresh noise at every mask update, the same however the
    weights are sharded.

  Raises:
    TypeError: score is no function, deviation no number.
    ValueError: deviation is negative.

  References:
    Evci et al. 2020, "Rigging the lottery" (the authors' implementation).

  Example:
    >>> import sparsejax as sj
    >>> transform = sj.drop(sj.noisy(sj.magnitude, 1e-3), 0.3)
  """
  check_score("score", score)
  check_number("deviation", deviation, "be at least 0", lambda v: 0 <= v < np.inf)

  def with_noise(inputs: ScoreInputs) -> PyTree:
    leaves, treedef = jax.tree.flatten(score(inputs))
    keys = leaf_keys(jax.random.fold_in(inputs.key, _SALT), leaves)
    return treedef.unflatten(
      leaf.astype(jnp.float32) + deviation * normal_like(key, leaf)
      for key, leaf in zip(keys, leaves, strict=True)
    )

  return with_noise


def normal_like(key: jax.Array, x: jax.Array) -> jax.Array:
  """Standard normal float32 with the shape and the sharding of another array."""
  # The quantile of a uniform draw: the one kind of draw that keeps its sharding.
  centered = 2 * uniform_like(key, x) - (1 - 2**-23)
  return jnp.float32(2**0.5) * jax.scipy.special.erfinv(centered)
