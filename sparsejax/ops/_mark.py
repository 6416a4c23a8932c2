"""Dead weights as -0.0: a kernel that says which of its blocks to skip."""

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
  """Turns dead weights into -0.0, so that products may skip them.

  w = p where live, -0.0 where dead;  dw/dp = 1 everywhere

  Call it inside the loss, `loss(sj.mark_dead(params, opt_state), batch)`, with layers
  that multiply by `sj.ops.block_dot_general`; a live weight of -0.0 becomes +0.0. Every
  value is equal, so what does not look at the sign of a zero computes the same, and
  casts, transposes, reshapes, slices and `scan` keep the sign.

  The gradients of marked weights come out as zero where a product skips them, so
  weights are marked only where the coming update does not look at their gradients:

  - Where masks never change (`static_sparse`), at every step.
  - Where gradients are masked for the inner optimizer (`rigl`, `sparse_evolution`), at
    every step but those of a mask update: which weights it makes live may depend on the
    gradients, and those that it does take the same step's update.
  - Never where dead weights' gradients are needed at every step (`sparse_momentum`,
    methods that act by `sj.effective`, and those that accumulate). Their dead weights
    stay 0.0, which products still skip in the forward pass and in the gradient of
    their input; only the weights' gradient is dense.

  What sees the gradients before the sparse optimizer does, such as a clipping by their
  global norm in a chain, sees zeros for dead weights, or not, accordingly. Methods that
  act by `sj.effective` compose: `sj.mark_dead(sj.effective(params, s), s)`.

  Args:
    params: any pytree of arrays.
    opt_state: the state of an optimizer made by this package, possibly nested, of the
      same step as the params.
    update_masks: what the coming `tx.update(..., update_masks=...)` gets, a bool,
      possibly traced; None where the schedule decides.

  Returns:
    The same container with the same dtypes; leaves without a mask unchanged.

  Raises:
    TypeError: a leaf with a mask is not floating point, or update_masks no bool.
    ValueError: structures or shapes differ; there is no sparsified optimizer.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> params = {"kernel": jnp.array([[1.0, 0.0]])}
    >>> tx = sj.static_sparse(optax.sgd(0.1), density=0.5)
    >>> state = sj.with_masks(tx.init(params), {"kernel": params["kernel"] != 0})
    >>> sj.mark_dead(params, state)
    {'kernel': Array([[ 1., -0.]], dtype=float32)}
  """
  _check_update_masks(update_masks)

  def unmarked(state: SparseState, mask: Array) -> Array:
    need = state.dense_gradients
    if need is None:
      return jnp.ones_like(mask)
    due = need.due if update_masks is None else jnp.asarray(update_masks)
    return mask | (need.always | due)

  find_masks(opt_state)  # raises where there is nothing to mark
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
  # By bits: a compiler may take a comparison with zero for granted.
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
