"""Iterative pruning and retraining, with rules for magnitude, OBD and OBS.

A rule is `(params, masks, live) -> Pruned`: it keeps `live` weights and returns their
new values. The loop is one `lax.scan`, so it compiles once and can be mapped over
seeds. Map by `jax.lax.map` if a rule or the retraining factorizes matrices on a CPU:
there a batched factorization waits for other threads of XLA's pool, and two at once on
two cores wait for each other forever (seen with jaxlib 0.10.2).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from sparsejax.core import check_callable, check_number, split_k, top_k_mask
from sparsejax.scores import obd_saliency
from sparsejax.second_order import _obs

Params = Any


class Pruned(NamedTuple):
  """The result of a pruning rule."""

  params: Params  # exactly 0.0 where masked
  masks: Params  # bool, True = live
  predicted: jax.Array  # scalar, the predicted rise of the loss; NaN without prediction


Rule = Callable[[Params, Params, jax.Array], Pruned]


class Trajectory(NamedTuple):
  """The result of `prune_retrain`; axis 0 of every leaf is the round."""

  pruned: Params  # after the deletion, before retraining
  retrained: Params  # after retraining
  masks: Params
  live: jax.Array  # (rounds,) int32
  predicted: jax.Array  # (rounds,) predicted rise of the loss
  actual: jax.Array  # (rounds,) actual rise of the loss, before retraining
  loss: jax.Array  # (rounds,) after retraining


def prune_retrain(
  rule: Rule,
  retrain: Callable[[Params, Params], Params],
  loss: Callable[[Params], jax.Array],
  params: Params,
  masks: Params,
  live: jax.Array,
) -> Trajectory:
  """Prunes to each number of weights in `live` in turn, and retrains after each.

  Args:
    rule: the pruning rule; see `score_rule`, `obd_rule` and `surgeon_rule`.
    retrain: `(params, masks) -> params`; masked weights are then set to 0.0.
    loss: `params -> scalar`, the loss whose rise the rule predicts.
    params: pytree of float arrays.
    masks: pytree of bool arrays like `params`, True = live.
    live: int array `(rounds,)`, the number of weights kept in each round.

  Returns:
    `Trajectory`.

  Raises:
    ValueError: `live` is not one-dimensional.

  Example:
    >>> rule = score_rule(lambda params, masks: jax.tree.map(jnp.abs, params))
    >>> w = jnp.array([3.0, -1.0, 2.0])
    >>> t = prune_retrain(rule, lambda p, m: p, jnp.sum, w, w != 0, jnp.array([2, 1]))
    >>> t.retrained.tolist()
    [[3.0, 0.0, 2.0], [3.0, 0.0, 0.0]]
  """
  live = jnp.asarray(live, jnp.int32)
  if live.ndim != 1:
    raise ValueError(f"live must be one-dimensional, got shape {live.shape}.")

  def one_round(state, target):
    params, masks = state
    before = loss(params)
    pruned = rule(params, masks, target)
    trained = _masked(retrain(pruned.params, pruned.masks), pruned.masks)
    entry = Trajectory(
      pruned=pruned.params,
      retrained=trained,
      masks=pruned.masks,
      live=_count(pruned.masks),
      predicted=pruned.predicted,
      actual=loss(pruned.params) - before,
      loss=loss(trained),
    )
    return (trained, pruned.masks), entry

  return jax.lax.scan(one_round, (params, masks), live)[1]


def score_rule(score: Callable[[Params, Params], Params]) -> Rule:
  """Creates a rule that keeps the highest-scoring weights of the whole network.

  Args:
    score: `(params, masks) -> pytree of float arrays` of one dtype; higher scores are
      kept.

  Returns:
    A rule. It makes no prediction: `predicted` is NaN.

  Example:
    >>> rule = score_rule(lambda params, masks: jax.tree.map(jnp.abs, params))
    >>> rule(jnp.array([3.0, -1.0]), jnp.array([True, True]), 1).params.tolist()
    [3.0, 0.0]
  """
  check_callable("score", score, "a function of (params, masks)", 2)

  def rule(params, masks, live):
    kept = keep_best(score(params, masks), masks, live)
    nothing = jnp.full((), jnp.nan, jax.tree.leaves(params)[0].dtype)
    return Pruned(_masked(params, kept), kept, nothing)

  return rule


def obd_rule(diagonal: Callable[[Params], Params]) -> Rule:
  """Creates the rule of optimal brain damage: deletes the weights of least saliency.

  Args:
    diagonal: `params -> pytree`, the Hessian's diagonal or an approximation of it.

  Returns:
    A rule; its prediction is the sum of the saliencies of the deleted weights.

  Example:
    >>> rule = obd_rule(lambda w: jnp.array([1.0, 20.0]))
    >>> rule(jnp.array([3.0, -1.0]), jnp.array([True, True]), 1).params.tolist()
    [0.0, -1.0]

  Reference: LeCun, Denker and Solla, Optimal brain damage (1990), section 2.2.
  """
  check_callable("diagonal", diagonal, "a function of the params", 1)

  def rule(params, masks, live):
    saliency = obd_saliency(params, diagonal(params))
    kept = keep_best(saliency, masks, live)
    dropped = jax.tree.map(
      lambda s, m, k: jnp.sum(jnp.where(m & ~k, s, 0)), saliency, masks, kept
    )
    predicted = jnp.sum(jnp.stack(jax.tree.leaves(dropped)))
    return Pruned(_masked(params, kept), kept, predicted)

  return rule


def surgeon_rule(loss: Callable[[Params], jax.Array], *, damping: float = 0.0) -> Rule:
  """Creates the rule of optimal brain surgeon, with the loss's exact Hessian.

  The Hessian of all weights is formed, so the rule suits small networks.

  Args:
    loss: `params -> scalar`.
    damping: added to the Hessian's diagonal.

  Returns:
    A rule; see `optimal_brain_surgeon`.

  Raises:
    ValueError: `damping` is negative.

  Example:
    >>> rule = surgeon_rule(lambda w: w @ jnp.array([[2.0, 1.0], [1.0, 2.0]]) @ w / 2)
    >>> rule(jnp.array([1.0, 4.0]), jnp.array([True, True]), 1).params.tolist()
    [0.0, 4.5]

  Reference: Hassibi and Stork, Second order derivatives for network pruning: optimal
  brain surgeon (1993).
  """
  check_callable("loss", loss, "a function of the params", 1)
  check_number("damping", damping, "be at least 0", lambda v: 0 <= v < float("inf"))

  def rule(params, masks, live):
    flat, unravel = ravel_pytree(params)
    flat_masks = ravel_pytree(masks)[0]
    hessian = jax.hessian(lambda vector: loss(unravel(vector)))(flat)
    result = _obs.optimal_brain_surgeon(
      flat, hessian, flat_masks, live, damping=damping
    )
    unravel_masks = ravel_pytree(masks)[1]
    return Pruned(unravel(result.weights), unravel_masks(result.mask), result.predicted)

  return rule


def keep_best(scores: Params, masks: Params, live: jax.Array | int) -> Params:
  """Keeps exactly `live` of the live weights, those with the highest scores.

  Weights of all layers are ranked together. NaN ranks last, together with -inf.

  Example:
    >>> keep_best(jnp.array([1.0, 1.0]), jnp.array([True, True]), 1).tolist()
    [True, False]
  """
  leaves, structure = jax.tree.flatten(scores)
  leaves = [jnp.where(jnp.isnan(s), -jnp.inf, s) for s in leaves]
  where = jax.tree.leaves(masks)
  shares = split_k(leaves, live, where)
  kept = [
    top_k_mask(s, share, w) for s, share, w in zip(leaves, shares, where, strict=True)
  ]
  return jax.tree.unflatten(structure, kept)


def _masked(params, masks):
  return jax.tree.map(lambda p, m: jnp.where(m, p, jnp.zeros_like(p)), params, masks)


def _count(masks):
  counts = [jnp.sum(m, dtype=jnp.int32) for m in jax.tree.leaves(masks)]
  return jnp.sum(jnp.stack(counts), dtype=jnp.int32)
