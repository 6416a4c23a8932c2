"""Scores from the sums that `sj.accumulate` keeps over the steps."""

import jax
import jax.numpy as jnp

from sparsejax.core import PyTree, ScoreInputs


def accumulated(inputs: ScoreInputs) -> PyTree:
  """Returns the accumulated sum over the steps so far, with its sign.

  s = sum_t decay^(T - t) q_t

  Args:
    inputs: the `ScoreInputs` of the mask update, inside `sj.accumulate`.

  Returns:
    tree of floats, of the weights' shapes.

  Raises:
    ValueError: it is used outside `sj.accumulate`.

  Example:
    >>> import sparsejax as sj
    >>> transform = sj.accumulate(sj.movement, sj.prune_to(sj.accumulated, 0.1))
  """
  if inputs.accumulated is None:
    raise ValueError(
      "accumulated must be used inside sj.accumulate, got nothing there."
    )
  return inputs.accumulated


def accumulated_magnitude(inputs: ScoreInputs) -> PyTree:
  """Returns the magnitude of the accumulated sum over the steps so far.

  s = |sum_t decay^(T - t) q_t|

  Args:
    inputs: as in `accumulated`.

  Returns:
    tree of floats, of the weights' shapes.

  Raises:
    ValueError: it is used outside `sj.accumulate`.

  Example:
    >>> import sparsejax as sj
    >>> growth = sj.grow(sj.accumulated_magnitude)
    >>> transform = sj.accumulate(sj.signed_gradient, growth, decay=0.9)
  """
  return jax.tree.map(jnp.abs, accumulated(inputs))


def signed_gradient(inputs: ScoreInputs) -> PyTree:
  """Returns the gradient of this step with its sign, for `sj.accumulate`.

  s = dL/dw

  Masked weights have their dense gradient too.

  Args:
    inputs: the `ScoreInputs` of the step.

  Returns:
    tree of floats, of the gradients' shapes and dtypes.
  """
  return inputs.grads
