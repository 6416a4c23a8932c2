"""What `sj.accumulate` has gathered over the steps."""

import jax
import jax.numpy as jnp

from sparsejax.core import PyTree, ScoreInputs


def accumulated(inputs: ScoreInputs) -> PyTree:
  """The sum over the steps so far, with its sign.

  s = sum_t decay^(T - t) q_t

  Args:
    inputs: what scores may look at, inside `sj.accumulate`.

  Returns:
    tree of floats, of the weights' shapes.

  Raises:
    ValueError: nothing is accumulated.

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
  """The magnitude of the sum over the steps so far.

  s = |sum_t decay^(T - t) q_t|

  Args:
    inputs: as in `accumulated`.

  Returns:
    tree of floats, of the weights' shapes.

  Raises:
    ValueError: nothing is accumulated.

  Example:
    >>> import sparsejax as sj
    >>> growth = sj.grow(sj.accumulated_magnitude)
    >>> transform = sj.accumulate(sj.signed_gradient, growth, decay=0.9)
  """
  return jax.tree.map(jnp.abs, accumulated(inputs))


def signed_gradient(inputs: ScoreInputs) -> PyTree:
  """This step's gradient itself, dead weights included; to be accumulated.

  s = dL/dw

  Args:
    inputs: what scores may look at.

  Returns:
    tree of floats, of the gradients' shapes and dtypes.
  """
  return inputs.grads
