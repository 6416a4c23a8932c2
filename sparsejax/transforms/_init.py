"""The start of training: the optimizer's state, and params that are already masked."""

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

  `tx.init` cannot change the params. The first update sets masked weights to zero, but
  its gradient is taken before. So without this function the first gradient of a
  training loop is that of the dense network; under `optax.MultiSteps(tx, k)` the first
  k are.

  Methods whose masks act in the forward pass only (`straight_through`, `sr_ste`,
  `top_kast`, all of `sparsify_forward`, `edge_popup`) keep all weights:
  `sj.effective` masks them in the loss, and a masked weight may become live again with
  its value. The params of these methods, and all leaves that are not sparsified, are
  unchanged.

  `nnx.Optimizer` and `TrainState.create` call `tx.init` themselves; with them, apply
  the masks of their state: `sj.apply_masks(params, sj.masks(opt_state))`.

  Args:
    tx: an optimizer made by this package, alone or inside `optax.chain`,
      `optax.partition`, `optax.MultiSteps` and the like.
    params: any pytree of arrays.

  Returns:
    `(params, state)`: the masked params in the same container and dtypes, copied, so
    that a step may donate them while the caller keeps the originals; and the state
    returned by `tx.init`. May be called under `jit`.

  Raises:
    TypeError: tx is not an optimizer.
    ValueError: tx is not a sparse optimizer; also all errors of `tx.init`.

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
  """Copies the params and zeroes their masked weights.

  Args:
    params: any pytree of arrays.
    opt_state: the state returned by `tx.init(params)`, of any optimizer.

  Returns:
    A copy of the params. Masks that act in the forward pass only are not applied.
  """
  acting = [s for s in sparse_states(opt_state) if not isinstance(s, ForwardState)]
  return masked_copy(params, merged_masks(acting)) if acting else copied(params)
