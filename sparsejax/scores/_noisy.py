"""A score with Gaussian noise added to another score."""

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
  widened,
)

# Keeps the keys different from those of `random`, which the same chain may use.
_SALT = 0x6E6F6973


def noisy(score: Score, deviation: float) -> Score:
  """Adds Gaussian noise to a score.

  s + deviation * N(0, 1)

  Args:
    score: any score.
    deviation: standard deviation of the noise, in the unit of the score.

  Returns:
    A score, float32, or float64 for a float64 score. The noise is new at every
    mask update and does not depend on the sharding of the weights.

  Raises:
    TypeError: `score` is not a function, or `deviation` is not a number.
    ValueError: `deviation` is negative or not finite.

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

    def perturbed(key, leaf):
      leaf, noise = widened(leaf), normal_like(key, leaf)
      return leaf + deviation * noise.astype(leaf.dtype)

    return treedef.unflatten(map(perturbed, keys, leaves))

  return with_noise


def normal_like(key: jax.Array, x: jax.Array) -> jax.Array:
  """Draws standard normal float32 with the shape and sharding of another array."""
  # Transforms a uniform draw, because `uniform_like` keeps the sharding of x.
  centered = 2 * uniform_like(key, x) - (1 - 2**-23)
  return jnp.float32(2**0.5) * jax.scipy.special.erfinv(centered)
