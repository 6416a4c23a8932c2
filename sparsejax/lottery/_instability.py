"""Instability analysis: the error on the line between two trained networks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.core import check_callable, check_integer

Array = jax.Array
PyTree = Any
# Networks with a smaller instability count as stable (Frankle et al. 2020); in percent.
STABLE = 2.0


def interpolate(first: PyTree, second: PyTree, alpha: float | Array) -> PyTree:
  """Interpolates linearly between two networks.

  w = (1 - a) w_1 + a w_2

  Args:
    first: tree of arrays: params, or params and running averages.
    second: a tree like it.
    alpha: a, 0 for `first` and 1 for `second`.

  Returns:
    A tree like `first`. Leaves that are not floating point are copied from `first`.

  Example:
    >>> interpolate(jnp.array([0.0, 2.0]), jnp.array([4.0, 2.0]), 0.25).tolist()
    [1.0, 2.0]
  """

  def between(a, b):
    if not jnp.issubdtype(jnp.result_type(a), jnp.floating):
      return a
    t = jnp.asarray(alpha).astype(a.dtype)
    return (1 - t) * a + t * b

  return jax.tree.map(between, first, second)


def error_on_line(
  error: Callable[[PyTree], Array], first: PyTree, second: PyTree, points: int = 30
) -> Array:
  """Computes the error at evenly spaced points between two networks, ends included.

  Args:
    error: `tree -> scalar`, such as the test error in percent.
    first: tree of arrays.
    second: a tree like it.
    points: the number of points, at least 2.

  Returns:
    float (points,), in the units of `error`.

  Raises:
    ValueError: `points` is below 2.

  Example:
    >>> square = lambda w: w**2
    >>> error_on_line(square, jnp.float32(-1), jnp.float32(1), points=3).tolist()
    [1.0, 0.0, 1.0]
  """
  check_callable("error", error, "a function of the network", 1)
  check_integer("points", points, 2)
  alphas = jnp.linspace(0.0, 1.0, points)
  return jax.lax.map(lambda a: error(interpolate(first, second, a)), alphas)


def instability(errors: Array) -> Array:
  """Computes how far the error on a line rises above the mean of its two ends.

  max_a E(a) - (E(0) + E(1)) / 2

  With an instability below two percent, two networks count as linearly connected, and
  the state from which both were trained counts as stable.

  Args:
    errors: (..., points), from `error_on_line`.

  Returns:
    (...,), in the units of the errors.

  References:
    Frankle et al. 2020, "Linear mode connectivity and the lottery ticket hypothesis",
    section 2: 30 points and a threshold of 2 %.

  Example:
    >>> instability(jnp.array([1.0, 9.0, 3.0])).tolist()
    7.0
  """
  return jnp.max(errors, -1) - (errors[..., 0] + errors[..., -1]) / 2
