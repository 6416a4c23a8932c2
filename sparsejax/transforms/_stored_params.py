"""Copies of the params in the states of optax optimizers."""

from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.core import PyTree, align, select_masked

# The states that contain a tree of params, with its field. Schedule-free training and
# MADGRAD interpolate towards it; the others measure the distance from it.
_FIELDS = {
  "COCOBState": "init_particles",
  "DoGState": "init_params",
  "DoWGState": "init_params",
  "MadgradState": "x0",
  "MechanicState": "x0",
  "ProdigyState": "params0",
  "ScaleByLBFGSState": "params",
  "ScheduleFreeState": "z",
}


def stores_params(state: PyTree) -> bool:
  """Returns whether an optax state contains a copy of the params.

  Args:
    state: the state of any optax optimizer.

  Example:
    >>> import optax
    >>> params = {"kernel": jnp.ones((2, 2))}
    >>> stores_params(optax.adam(0.1).init(params))
    False
    >>> stores_params(optax.contrib.dog().init(params))
    True
  """
  return any(map(_is_storing, jax.tree.leaves(state, is_leaf=_is_storing)))


def mask_stored_params(state: PyTree, params: PyTree, masks: PyTree) -> PyTree:
  """Sets the masked weights to zero in the copies of the params inside a state.

  z = where(m, z, 0)

  `init` gets dense params. Without this, a grown weight would move to its dense initial
  value, the averages of `optax.contrib.schedule_free` would be dense, and distances
  from the initial params would count weights that are not there.

  Args:
    state: the state of any optax optimizer.
    params: the params.
    masks: the masks, None at leaves that are not sparsified.

  Returns:
    The state; the rest of it is unchanged.

  Example:
    >>> import optax
    >>> params = {"kernel": jnp.array([[1.0, 2.0]])}
    >>> state = optax.contrib.dog().init(params)
    >>> masks = {"kernel": jnp.array([[True, False]])}
    >>> mask_stored_params(state, params, masks)[0].init_params["kernel"]
    Array([[1., 0.]], dtype=float32)
  """
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  by_path = dict(zip(paths, align(params, masks), strict=True))

  def mask(path, leaf):
    m = by_path.get(path)
    return leaf if m is None else select_masked(m, leaf, jnp.zeros_like(leaf))

  def mask_state(node: Any):
    if not _is_storing(node):
      return node
    name = _FIELDS[type(node).__name__]
    stored = jax.tree_util.tree_map_with_path(mask, getattr(node, name))
    return node._replace(**{name: stored})

  return jax.tree.map(mask_state, state, is_leaf=_is_storing)


def _is_storing(node: Any) -> bool:
  return type(node).__name__ in _FIELDS
