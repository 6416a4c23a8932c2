"""Marking masked weights by -0.0, so that products can skip their blocks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax.core import (
  Array,
  PyTree,
  SparseState,
  align,
  merged_masks,
  path_string,
  sparse_states,
)
from sparsejax.core import masks as find_masks
from sparsejax.ops._blocks import bits_of, negative_zero


def mark_dead(params: PyTree, opt_state: PyTree, update_masks: Any = None) -> PyTree:
  """Sets masked weights to -0.0, so that products may skip them.

  w = p where live, -0.0 where dead;  dw/dp = 1 everywhere

  Call it inside the loss, `loss(sj.mark_dead(params, opt_state), batch)`, with layers
  that multiply by `sj.ops.block_dot_general`. A live weight of -0.0 becomes +0.0. All
  values compare equal to the old ones, so functions that ignore the sign of zero give
  the same result. Casts, transposes, reshapes, slices and `scan` keep the sign.

  Where a product skips marked weights, their gradients are zero. So weights are marked
  only if the next update does not use their gradients:

  - If masks never change (`static_sparse`), at every step.
  - If the inner optimizer gets masked gradients (`rigl`, `sparse_evolution`), at every
    step without a mask update. A mask update may grow weights by their gradients, and
    grown weights are already updated in the same step.
  - Never if gradients of masked weights are used at every step (`sparse_momentum`,
    methods that act by `sj.effective`, and methods that accumulate). Their masked
    weights remain 0.0, which products still skip in the forward pass and in the
    gradient of the input; only the weights' gradient is dense.

  Transforms that get the gradients before the sparse optimizer, such as clipping by the
  global norm in a chain, get zeros for masked weights at the steps at which these are
  marked. For methods that act by `sj.effective`, call
  `sj.mark_dead(sj.effective(params, s), s)`.

  Args:
    params: any pytree of arrays.
    opt_state: the state of an optimizer made by this package, possibly nested, of the
      same step as the params.
    update_masks: the value of `update_masks` in the next `tx.update` call, a bool,
      possibly traced; None if the schedule decides.

  Returns:
    The same container with the same dtypes; leaves without a mask are unchanged.

  Raises:
    TypeError: a leaf with a mask is not floating point, or `update_masks` is not a
      bool.
    ValueError: structures or shapes differ, or `opt_state` has no state of a sparsified
      optimizer.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> params = {"kernel": jnp.array([[1.0, 0.0]])}
    >>> tx = sj.static_sparse(optax.sgd(0.1), density=0.5)
    >>> state = sj.with_masks(tx.init(params), {"kernel": params["kernel"] != 0})
    >>> sj.mark_dead(params, state)
    {'kernel': Array([[ 1., -0.]], dtype=float32)}
  """
  _check_update_masks(update_masks)

  # True at weights that are not marked: live ones, and all of a state whose next update
  # uses the gradients of masked weights.
  def unmarked(state: SparseState, mask: Array, budget: Array) -> Array:
    del budget
    need = state.dense_gradients
    if need is None:
      return jnp.ones_like(mask)
    due = need.due if update_masks is None else jnp.asarray(update_masks)
    return mask | (need.always | due)

  find_masks(opt_state)  # raises if there is no sparsified optimizer
  keep = merged_masks(sparse_states(opt_state), unmarked)
  flat, treedef = jax.tree_util.tree_flatten_with_path(params)
  out = []
  for (path, p), k in zip(flat, align(params, keep, strict=False), strict=True):
    if k is not None and not jnp.issubdtype(p.dtype, jnp.floating):
      raise TypeError(
        f"params must be floating point where they are sparsified, got {p.dtype.name} "
        f"at {path_string(path)!r}."
      )
    out.append(p if k is None else _mark(p, k))
  return treedef.unflatten(out)


@jax.custom_jvp
def _mark(weight: Array, keep: Array) -> Array:
  # Uses bits, because a compiler may ignore the sign of a zero in float operations.
  sign = negative_zero(weight)
  bits = bits_of(weight)
  bits = jnp.where(keep, jnp.where(bits == sign, jnp.zeros_like(bits), bits), sign)
  return lax.bitcast_convert_type(bits, weight.dtype)


@_mark.defjvp
def _mark_jvp(primals, tangents):
  return _mark(*primals), tangents[0]


def _check_update_masks(update_masks: Any) -> None:
  if update_masks is None or isinstance(update_masks, (bool, np.bool_)):
    return
  got = repr(update_masks)
  if isinstance(update_masks, (jax.Array, np.ndarray)):
    if update_masks.ndim == 0 and update_masks.dtype == bool:
      return
    got = f"{update_masks.dtype}{list(update_masks.shape)}"
  raise TypeError(f"update_masks must be one bool, got {got}.")
