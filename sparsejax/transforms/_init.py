"""Starts a training: the optimizer's state, and params that are sparse already."""

from typing import Any

import optax

from sparsejax.core import (
  ForwardState,
  PyTree,
  check_optimizer,
  copied,
  masked_copy,
  merged_masks,
  sparse_states,
)


def init(tx: optax.GradientTransformation, params: PyTree) -> tuple[PyTree, Any]:
  """Initializes an optimizer and masks the params for the first gradient.

  state = tx.init(params);  params = apply_masks(params, masks(state))

  `tx.init` cannot change the params, and the first update, which sets masked weights to
  zero, takes its gradient before: without this function the first step of a loop is
  that of the dense network, and under `optax.MultiSteps(tx, k)` the first k are.

  A method whose masks act in the forward pass only (`straight_through`, `sr_ste`,
  `top_kast`, `sparsify_forward`, `supermasks.edge_popup`) keeps all weights: there
  `sj.effective` masks them in the loss, and a dead weight may return with its value. Of
  such leaves, and of all that are not sparsified, the params stay as they are.

  With `nnx.Optimizer` or `TrainState.create`, which call `tx.init` themselves, apply
  the masks of their state: `sj.apply_masks(params, sj.masks(opt_state))`.

  Args:
    tx: an optimizer made by this package, alone or inside `optax.chain`,
      `optax.partition`, `optax.MultiSteps` and the like.
    params: any pytree of arrays.

  Returns:
    `(params, state)`: the same container and dtypes, in arrays of their own, so that a
    step may donate them while the caller keeps `params`; and what `tx.init` gives. May
    be called under `jit`.

  Raises:
    TypeError: tx is no optimizer.
    ValueError: tx is not a sparse one; what `tx.init` raises.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.static_sparse(optax.sgd(0.1), density=0.25)
    >>> params, state = sj.init(tx, {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)})
    >>> int(params["kernel"].sum()), int(params["bias"].sum())
    (4, 4)
  """
  check_optimizer("tx", tx)
  state = tx.init(params)
  if not sparse_states(state):
    raise ValueError(
      "tx must be an optimizer made by sparsejax, got one whose state has no "
      f"SparseState in it: {type(state).__name__}."
    )
  return masked_start(params, state), state


def masked_start(params: PyTree, opt_state: Any) -> PyTree:
  """The params from which `init` starts.

  Args:
    params: any pytree of arrays.
    opt_state: what `tx.init` gave for them, of any optimizer.

  Returns:
    A copy, zero where masks say so that do not act in the forward pass only.
  """
  acting = [s for s in sparse_states(opt_state) if not isinstance(s, ForwardState)]
  return masked_copy(params, merged_masks(acting)) if acting else copied(params)
