"""Validation of the params and the inner optimizer of `sparsify`."""

from typing import Any

import jax
import optax

from sparsejax.core import PyTree, path_string, sparse_states


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
