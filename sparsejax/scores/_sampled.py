"""A score that turns the selection of the best into sampling."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.core import (
  PyTree,
  Score,
  ScoreInputs,
  check_callable,
  check_number,
  check_score,
  leaf_keys,
  uniform_like,
  widened,
)

# Keeps the keys different from those of `random`, which the same chain may use.
_SALT = 0x73616D70


def sampled(score: Score, exponent: float | Callable[[jax.Array], Any] = 1.0) -> Score:
  """Makes a selection of the best a random one, in proportion to a power of the score.

  exponent log(s) - log(-log U),  U ~ U(0, 1)

  The k weights with the largest of these values are a sample of k weights without
  replacement, each drawn with a probability in proportion to s^exponent among those
  that are left (the Gumbel trick). A weight with score 0 is selected last.

  Args:
    score: any score that is not negative.
    exponent: the power, at least 0: a float or a schedule `step -> float`. 0 draws
      uniformly from the weights with a positive score; a large one selects the best.

  Returns:
    A score, float32, or float64 for a float64 score. The noise is new at every
    mask update and does not depend on the sharding of the weights.

  Raises:
    TypeError: `score` is not a function, or `exponent` is neither a number nor a
      function.
    ValueError: `exponent` is negative or infinite.

  References:
    Zhang et al. 2025, "Brain network science modelling of sparse neural networks
    enables Transformers and LLMs to perform as fully connected", eq. 2. Kool, van Hoof
    & Welling 2019, "Stochastic beams and where to find them" (Gumbel top-k).

  Example:
    >>> import sparsejax as sj
    >>> transform = sj.drop(sj.sampled(sj.magnitude, exponent=2.0), 0.3)
  """
  check_score("score", score)
  if callable(exponent):
    check_callable("exponent", exponent, "a number or a function of the step", 1)
  else:
    rule = "be at least 0 and finite"
    check_number("exponent", exponent, rule, lambda v: 0 <= v < float("inf"))

  def with_noise(inputs: ScoreInputs) -> PyTree:
    power = exponent(inputs.step) if callable(exponent) else exponent
    power = jnp.asarray(power).astype(jnp.float32)
    leaves, treedef = jax.tree.flatten(score(inputs))
    keys = leaf_keys(jax.random.fold_in(inputs.key, _SALT), leaves)
    return treedef.unflatten(
      _perturbed(widened(leaf), power, key)
      for key, leaf in zip(keys, leaves, strict=True)
    )

  return with_noise


def _perturbed(s: jax.Array, power: jax.Array, key: jax.Array) -> jax.Array:
  # Half a step of the draw, so that neither logarithm is infinite.
  noise = -jnp.log(-jnp.log(uniform_like(key, s) + jnp.float32(2**-25)))
  noise, power = noise.astype(s.dtype), power.astype(s.dtype)
  positive = s > 0
  log = jnp.log(jnp.where(positive, s, jnp.ones_like(s)))
  last = jnp.where(s <= 0, -jnp.inf, s)  # NaN stays NaN
  return jnp.where(positive, power * log + noise, last)
