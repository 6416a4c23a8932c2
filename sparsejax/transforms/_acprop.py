"""Bounds what ACProp does to grown weights, which have no second moment yet."""

import jax
import jax.numpy as jnp

from sparsejax.core import Moments, PyTree, align

# What `eps_root` = 1e-16 leaves of the second moment where gradients were always zero
# is at most 1e-16 / (1 - b2).
_EMPTY = 1e-12
# How much more the first gradient must bring than stood there.
_GROWTH = 1000.0


def bounded_first_steps(
  updates: PyTree, before: Moments, after: Moments, first: jax.Array
) -> PyTree:
  """Divides by the second moment after the step where the one before it held nothing.

  u' = u sqrt(v_before / v_after) where v_before < 1e-12 and v_after > 1000 v_before,
  else u

  `optax.contrib.acprop` divides by the previous second moment. Under methods that mask
  gradients that of a grown weight is about 1e-16, and the weight would step by some
  thousands of times the learning rate. Divided by the one after the step it takes the
  step that AdaBelief takes: (1 - b1) / sqrt(1 - b2) = 3.2 times the learning rate.

  Args:
    updates: the inner optimizer's.
    before: its moments before the step.
    after: its moments after the step.
    first: bool scalar, whether this is the first step, in which ACProp divides by 1.

  Returns:
    The updates, of the same structure and dtypes.

  References:
    Zhuang et al. 2021, "Momentum centering and asynchronous update for adaptive
    gradient methods", algorithm 3.
  """
  leaves, treedef = jax.tree.flatten(updates)
  out = []
  for u, old, new in zip(
    leaves, align(updates, before.second), align(updates, after.second), strict=True
  ):
    if old is None or new is None:
      out.append(u)
      continue
    empty = old < jnp.asarray(_EMPTY, old.dtype)
    young = empty & (new > jnp.asarray(_GROWTH, old.dtype) * old) & ~first
    ratio = jnp.sqrt(old / jnp.where(young, new, jnp.ones_like(new)))
    out.append(jnp.where(young, u * ratio.astype(u.dtype), u))
  return treedef.unflatten(out)
