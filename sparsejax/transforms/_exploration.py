"""In-time over-parametrization: the fraction of weights that were ever live."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparsejax.core import PyTree, check_optimizer, count
from sparsejax.core import masks as find_masks

Array = jax.Array


class ExplorationState(NamedTuple):
  """The state of `track_exploration`.

  Attributes:
    explored: a tree like that of `sj.masks`, True where a weight is or was live.
    inner_state: the optimizer's state.
  """

  explored: PyTree
  inner_state: PyTree


def track_exploration(
  tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Records which weights were ever live; updates are those of `tx`.

  explored <- explored | masks

  Args:
    tx: any optimizer that contains a sparse one of this package.

  Returns:
    An optax transformation whose state contains that of `tx` and one bool per weight.

  Raises:
    TypeError: `tx` is not an optimizer.
    ValueError: in `init`, there is no sparse optimizer in the state.

  References:
    Liu et al. 2021, "Do we actually need dense over-parameterization? In-time
    over-parameterization in sparse training".

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.track_exploration(sj.rigl(optax.sgd(0.1), density=0.25))
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> float(sj.exploration_rate(state))
    0.25
  """
  check_optimizer("tx", tx, "an optimizer with a sparse one in it")
  tx = optax.with_extra_args_support(tx)

  def init_fn(params):
    state = tx.init(params)
    # Copies, because a step that donates its state must not get one buffer twice.
    return ExplorationState(jax.tree.map(jnp.copy, find_masks(state)), state)

  def update_fn(updates, state, params=None, **extra_args):
    updates, inner = tx.update(updates, state.inner_state, params, **extra_args)
    explored = jax.tree.map(jnp.logical_or, state.explored, find_masks(inner))
    return updates, ExplorationState(explored, inner)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def exploration_rate(opt_state: PyTree) -> Array:
  """Returns the in-time over-parametrization rate: the fraction of weights ever live.

  R_s = #{i : m_i was True at some step} / #{i}

  Args:
    opt_state: the state of an optimizer that contains `track_exploration`, possibly
      nested.

  Returns:
    float32 scalar in (0, 1], over all sparsified leaves.

  Raises:
    ValueError: nothing in the state tracks exploration.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.track_exploration(sj.dense(optax.sgd(0.1)))
    >>> float(sj.exploration_rate(tx.init({"kernel": jnp.ones((8, 8))})))
    1.0
  """

  def tracks(node):
    return isinstance(node, ExplorationState)

  found = [s for s in jax.tree.leaves(opt_state, is_leaf=tracks) if tracks(s)]
  if not found:
    raise ValueError(
      "opt_state must come from an optimizer in sj.track_exploration, got "
      f"{type(opt_state).__name__} without any ExplorationState in it."
    )
  masks = [m for state in found for m in jax.tree.leaves(state.explored)]
  live = jnp.sum(jnp.stack([count(m).astype(jnp.float32) for m in masks]))
  return live / jnp.float32(sum(m.size for m in masks))
