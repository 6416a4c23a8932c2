"""The inner optimizer of `sparsify`: validation, and the params in its state."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.core import PyTree, align, path_string, select_masked, sparse_states

# The states that contain a tree of params, with its field. Schedule-free training and
# MADGRAD interpolate towards it; the others measure the distance from it.
_STORED = {
  "COCOBState": "init_particles",
  "DoGState": "init_params",
  "DoWGState": "init_params",
  "MadgradState": "x0",
  "MechanicState": "x0",
  "ProdigyState": "params0",
  "ScaleByLBFGSState": "params",
  "ScheduleFreeState": "z",
}


def check_params(params: PyTree) -> None:
  """Raises ValueError for params that contain their weights twice.

  Args:
    params: the argument of `init`.

  Raises:
    ValueError: they are, or contain, `optax.LookaheadParams`, whose fast and slow
      weights would get different masks.
  """
  if _lookahead(params) or any(
    map(_lookahead, jax.tree.leaves(params, is_leaf=_lookahead))
  ):
    raise ValueError(
      "params must not be optax.LookaheadParams, whose fast and slow weights would get "
      "two different masks, got fast and slow weights: put the sparse optimizer inside "
      "optax.lookahead, and mask both after each step with sj.apply_masks."
    )


def _lookahead(node: Any) -> bool:
  return isinstance(node, optax.LookaheadParams)


def check_inner(
  inner: optax.GradientTransformation,
  inner_state: PyTree,
  params: PyTree,
  chosen: list[bool],
  factories: frozenset[str],
) -> None:
  """Raises if the inner optimizer is sparse or never updates a sparsified leaf.

  Args:
    inner: the inner optimizer.
    inner_state: its state.
    params: the params with which the state was initialized.
    chosen: one bool per leaf of `params`: whether it is sparsified.
    factories: the result of `factories_of(inner)`.

  Raises:
    ValueError: the inner optimizer is sparse, or `optax.set_to_zero` is applied to a
      sparsified leaf.
  """
  if sparse_states(inner_state):
    raise ValueError(
      "inner must be a dense optimizer, got one that is sparse already: two sets of "
      "masks would act on the same weights; combine mask transforms with sj.chain, or "
      "give groups of leaves their own methods with sj.by_path."
    )
  if "set_to_zero" not in factories:
    return  # no leaf is frozen; skip tracing the optimizer, which takes time
  # A sparsified leaf is frozen if its update is constant in the traced program.
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  constant = _constant_updates(inner, inner_state, params)
  frozen = [
    path_string(path)
    for path, flag, still in zip(paths, chosen, constant, strict=True)
    if flag and still
  ]
  if frozen:
    raise ValueError(
      "where must leave out weights that the inner optimizer never moves "
      f"(optax.set_to_zero), for masks would remove them all the same; got {frozen}."
    )


def _constant_updates(inner, inner_state, params) -> list[bool]:
  """Returns, per leaf, whether its update is independent of all inputs."""
  try:
    jaxpr = jax.make_jaxpr(inner.update)(params, inner_state, params).jaxpr
  except TypeError:  # it requires extra arguments, which are known in `update` only
    return [False] * len(jax.tree.leaves(params))
  # Follow the inputs through the program: an output that none of them reaches is
  # constant.
  moving = set(jaxpr.invars)
  for equation in jaxpr.eqns:
    if any(not hasattr(v, "val") and v in moving for v in equation.invars):
      moving.update(equation.outvars)
  updates = jaxpr.outvars[: len(jax.tree.leaves(params))]
  return [hasattr(v, "val") or v not in moving for v in updates]


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


def mask_stored_params(
  state: PyTree, params: PyTree, masks: PyTree, values: PyTree | None = None
) -> PyTree:
  """Sets the masked weights to zero in the copies of the params inside a state.

  z = where(m, z, v), v = 0 by default

  `init` gets dense params. Without this, a grown weight would move to its dense initial
  value, the averages of `optax.contrib.schedule_free` would be dense, and distances
  from the initial params would count weights that are not there.

  Args:
    state: the state of any optax optimizer.
    params: the params.
    masks: the masks, None at leaves that are not sparsified.
    values: what the masked weights are set to, a tree like the masks; None for zero.

  Returns:
    The state; the rest of it is unchanged.

  Example:
    >>> import optax
    >>> params = {"kernel": jnp.array([[1.0, 2.0]])}
    >>> state = optax.contrib.dog().init(params)
    >>> masks = {"kernel": jnp.array([[True, False]])}
    >>> state = mask_stored_params(state, params, masks)
    >>> optax.tree.get(state, "init_params")["kernel"]
    Array([[1., 0.]], dtype=float32)
  """
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  others = [None] * len(paths) if values is None else align(params, values)
  pairs = zip(align(params, masks), others, strict=True)
  by_path = dict(zip(paths, pairs, strict=True))

  def mask(path, leaf):
    m, v = by_path.get(path, (None, None))
    if m is None:
      return leaf
    v = jnp.zeros_like(leaf) if v is None else v.astype(leaf.dtype)
    return select_masked(m, leaf, v)

  def mask_state(node: Any):
    if not _is_storing(node):
      return node
    name = _STORED[type(node).__name__]
    fields = node._asdict()
    stored = jax.tree_util.tree_map_with_path(mask, fields.pop(name))
    # Its other fields may contain an optimizer that stores params too.
    return node._replace(**{name: stored}, **mask_all(fields))

  def mask_all(tree):
    return jax.tree.map(mask_state, tree, is_leaf=_is_storing)

  return mask_all(state)


def _is_storing(node: Any) -> bool:
  return type(node).__name__ in _STORED
