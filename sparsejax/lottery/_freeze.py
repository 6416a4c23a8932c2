"""Training that keeps masked weights at their current values instead of at zero."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.core import align, check_optimizer
from sparsejax.core import masks as find_masks

PyTree = Any


def freeze_masked(
  tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Wraps a sparse optimizer so that its updates leave masked weights unchanged.

  update = u where live, else 0

  This serves the mask-0 actions of Zhou et al.: `mask_zero` computes the values of the
  masked weights, and this transformation keeps them during training.

  Args:
    tx: an optimizer of this package, such as `sj.static_sparse(...)`.

  Returns:
    An optax transformation with the state of `tx`; `sj.masks` and `sj.with_masks` work
    on that state. Masked weights need not be zero, and a mask update of `tx` does not
    set them to zero.

  Raises:
    TypeError: `tx` is not an optax transformation.

  References:
    Zhou et al. 2019, "Deconstructing lottery tickets", section 3.

  Example:
    >>> import sparsejax as sj
    >>> params = {"kernel": jnp.array([[1.0, 2.0]])}
    >>> tx = freeze_masked(sj.static_sparse(optax.sgd(0.5), density=1.0))
    >>> masks = {"kernel": jnp.array([[True, False]])}
    >>> state = sj.with_masks(tx.init(params), masks)
    >>> updates, _ = tx.update({"kernel": jnp.ones((1, 2))}, state, params)
    >>> updates["kernel"].tolist()
    [[-0.5, 0.0]]
  """
  check_optimizer("tx", tx)
  tx = optax.with_extra_args_support(tx)

  def update(updates, state, params=None, **extra_args):
    updates, state = tx.update(updates, state, params, **extra_args)
    leaves, treedef = jax.tree.flatten(updates)
    entries = align(updates, find_masks(state), strict=False)
    frozen = [
      u if m is None else jnp.where(m, u, jnp.zeros_like(u))
      for u, m in zip(leaves, entries, strict=True)
    ]
    return treedef.unflatten(frozen), state

  return optax.GradientTransformationExtraArgs(tx.init, update)
