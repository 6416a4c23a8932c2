"""Warm-up of the updates of grown weights."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparsejax.core import PyTree, align
from sparsejax.core import masks as find_masks
from sparsejax.transforms import GrownState


class WarmUpState(NamedTuple):
  """The state of `warm_up`.

  Attributes:
    ages: int32 at the sparsified leaves: the steps since a weight was grown, at most
      `steps`; 0 where masked.
    inner_state: the sparse optimizer's state.
  """

  ages: PyTree
  inner_state: PyTree


def warm_up(
  tx: optax.GradientTransformation, steps: int = 10
) -> optax.GradientTransformationExtraArgs:
  """Ramps up the updates of each grown weight from its first step.

  u_i *= min(1, age_i / steps),   age_i = steps since weight i grew, 1 in the first

  Adam corrects the bias of its moments by the optimizer's step count, not by the age of
  a weight. With zero moments and a large count, the first step of a grown weight is
  (1 - b1) / sqrt(1 - b2) = 3.2 times the learning rate, for any gradient. Without
  warm-up, simultaneous growth of thousands of weights under Adam can destabilize
  trained networks.

  Values that `initialize_grown` sets are set whole, and the ramp begins with the next
  step.

  Args:
    tx: an optimizer created by `sparsify` or a method of this package.
    steps: length of the ramp, at least 1; 1 means no ramp. Weights that are live at
      `init` have no ramp.

  Returns:
    An optax transformation. Its state contains that of `tx`, so `sj.masks` and
    `sj.with_masks` work on it.

  Raises:
    ValueError: `steps` is below 1.

  Example:
    >>> import sparsejax as sj
    >>> tx = warm_up(sj.static_sparse(optax.sgd(1.0), density=1.0), steps=4)
    >>> params = {"kernel": jnp.ones((1, 2))}
    >>> masks = {"kernel": jnp.array([[True, False]])}
    >>> state = sj.with_masks(tx.init(params), masks)
    >>> grads = {"kernel": jnp.ones((1, 2))}
    >>> _, state = tx.update(grads, state, params)
    >>> state = sj.densify(state)
    >>> tx.update(grads, state, {"kernel": jnp.array([[1.0, 0.0]])})[0]["kernel"]
    Array([[-1.  , -0.25]], dtype=float32)
  """
  if steps < 1:
    raise ValueError(f"steps must be at least 1, got {steps}.")
  tx = optax.with_extra_args_support(tx)

  def init_fn(params):
    state = tx.init(params)
    ages = jax.tree.map(lambda m: jnp.where(m, jnp.int32(steps), 0), find_masks(state))
    return WarmUpState(ages, state)

  def update_fn(updates, state, params=None, **extra_args):
    before = find_masks(state.inner_state)
    updates, inner_state = tx.update(updates, state.inner_state, params, **extra_args)
    masks = find_masks(inner_state)
    # Count each live weight's steps up to `steps`; a dropped weight starts again at 0,
    # and so does one whose update in this step is its initial value.
    ages = jax.tree.map(
      lambda age, m: jnp.where(m, jnp.minimum(age + 1, steps), 0), state.ages, masks
    )
    if _has_initial_values(inner_state):
      ages = jax.tree.map(
        lambda age, old, new: jnp.where(new & ~old, 0, age), ages, before, masks
      )
    leaves, treedef = jax.tree.flatten(updates)
    ramped = []
    for u, age in zip(leaves, align(updates, ages), strict=True):
      if age is None:
        ramped.append(u)
        continue
      ramp = (age.astype(jnp.float32) / steps).astype(u.dtype)
      # At age 0 the update sets a dropped weight to zero, or a grown one to its value.
      ramped.append(jnp.where(age > 0, u * ramp, u))
    return treedef.unflatten(ramped), WarmUpState(ages, inner_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _has_initial_values(state) -> bool:
  """Returns whether grown weights are set to values, by `initialize_grown`."""
  is_grown = lambda x: isinstance(x, GrownState)
  return any(map(is_grown, jax.tree.leaves(state, is_leaf=is_grown)))
