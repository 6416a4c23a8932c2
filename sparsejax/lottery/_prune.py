"""Pruning of a trained network: which of its live weights a ticket keeps."""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sparsejax.core import (
  LayerAxes,
  Stacked,
  Where,
  align,
  check_callable,
  check_integer,
  check_mapping,
  check_masks,
  check_number,
  check_scores,
  check_stacked,
  choose,
  from_vector,
  layer_axes,
  layer_shapes,
  live_counts,
  named_leaves,
  scores_are_finite,
  selected,
  top_k_masks,
  true_like,
)
from sparsejax.second_order import keep_best

Array = jax.Array
PyTree = Any
_SCOPES = ("layer", "global")


def dense_masks(params: PyTree, where: Where = None) -> PyTree:
  """Creates masks in which every weight is live, as in the first round of pruning.

  Args:
    params: any pytree of arrays.
    where: selects the leaves to prune; see `sj.sparsify`.

  Returns:
    A tree like `params` with a bool array of ones at the selected leaves and None
    elsewhere.

  Raises:
    TypeError: `where` has the wrong type or selects a leaf that is not floating point.
    ValueError: no leaf is selected.

  Example:
    >>> masks = dense_masks({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    >>> int(masks["kernel"].sum()), masks["bias"]
    (6, None)
  """
  return jax.tree.map(true_like, choose(params, selected(params, where)))


def prune(
  params: PyTree,
  masks: PyTree,
  fraction: float | Array = 0.2,
  *,
  scope: str = "layer",
  rates: Mapping[str, float] | None = None,
  score: Callable[[PyTree, PyTree], PyTree] | None = None,
  stacked: Stacked = False,
) -> PyTree:
  """Drops the lowest-scoring fraction of the live weights, by magnitude by default.

  live'_l = live_l - round(rate_l live_l), or over all layers with `scope="global"`

  The count is exact, also with ties. Lottery tickets are usually found by dropping 20 %
  per round, and 10 % of the output layer; `ladder` computes the resulting counts.

  Args:
    params: pytree of float arrays, after training.
    masks: bool arrays (True = live) at the leaves to prune and None elsewhere, as
      returned by `sj.masks` and `dense_masks`.
    fraction: the fraction of the live weights to drop, in (0, 1); may be traced.
    scope: "layer" ranks weights within each layer, "global" over all layers.
    rates: `{regex of paths: fraction}`, fractions of single layers; the first regex
      that matches a path applies. Not with `scope="global"`.
    score: `(params, masks) -> tree like masks`, higher scores are kept; None for |w|.
    stacked: which leaves stack several layers; see `sj.sparsify`. Each of these layers
      is pruned by itself, at the rate of its leaf.

  Returns:
    A tree like `masks`; each mask is a subset of the given one.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: a fraction is outside (0, 1) or would leave a layer empty; `scope` is
      neither "layer" nor "global"; a regex matches no path; `stacked` selects no leaf
      with a mask; a score is NaN or +inf. Traced values are not checked; with
      `scope="layer"` every layer then keeps at least one weight.

  References:
    Frankle and Carbin 2019, "The lottery ticket hypothesis", sections 1 and 2.

  Example:
    >>> params = {"a": jnp.array([[4.0, -1.0, 2.0, 3.0]]), "b": jnp.array([[9.0, 8.0]])}
    >>> masks = prune(params, dense_masks(params), 0.25, rates={"b": 0.5})
    >>> masks["a"].tolist(), masks["b"].tolist()
    ([[True, False, True, True]], [[True, False]])
  """
  check_masks(masks)
  check_stacked(stacked)
  if score is not None:
    check_callable("score", score, "a function of (params, masks)", 2)
  if scope not in _SCOPES:
    raise ValueError(f"scope must be one of {list(_SCOPES)}, got {scope!r}.")
  if scope == "global" and rates:
    raise ValueError(f"rates must be empty with scope='global', got {dict(rates)}.")
  chosen = [m is not None for m in align(params, masks)]
  kernels, axes = choose(params, chosen), tuple(layer_axes(params, chosen, stacked))
  worth = jax.tree.map(jnp.abs, kernels) if score is None else score(params, masks)
  # Scores of leaves without a mask are left out; None may stand for several of them.
  none = lambda m: m is None
  worth = jax.tree.map(lambda m, s: None if none(m) else s, masks, worth, is_leaf=none)
  check_scores(worth, masks)
  # The rate of each layer: of every layer that a leaf stacks, the leaf's.
  paths = [path for path, _ in named_leaves(masks)]
  leaf_rates = zip(layer_rates(paths, fraction, rates), axes, strict=True)
  shares = [share for share, a in leaf_rates for _ in range(a.budget.size)]
  static = tuple(None if isinstance(s, Tracer) else float(s) for s in shares)
  kept, live, left, sound = _prune(
    worth, masks, jnp.asarray(fraction), rates=static, scope=scope, axes=axes
  )
  if not isinstance(left, Tracer) and not isinstance(sound, Tracer):
    if not bool(sound):
      raise ValueError("score must be below +inf and not NaN where masks are live.")
    _check_left(np.asarray(left), np.asarray(live), list(layer_shapes(axes)), shares)
  return kept


def ladder(
  sizes: Mapping[str, int],
  fraction: float = 0.2,
  rounds: int = 1,
  rates: Mapping[str, float] | None = None,
) -> list[dict[str, int]]:
  """Computes how many weights of each layer repeated calls of `prune` leave.

  live_{r+1} = live_r - round(rate live_r)

  Args:
    sizes: the number of weights of each layer, by its path.
    fraction: the fraction of the live weights dropped per round, in (0, 1).
    rounds: the number of rounds.
    rates: fractions of single layers, as in `prune`.

  Returns:
    rounds + 1 dicts from path to live weights; the first is `sizes`.

  Raises:
    ValueError: as in `prune`, or `rounds` is negative.

  Example:
    >>> sizes = {"dense1": 235200, "dense2": 30000, "dense3": 1000}
    >>> for live in ladder(sizes, 0.2, 9, {"dense3": 0.1})[3::2]:
    ...   print(f"{sum(live.values()) / 266200:.2%}")
    51.28%
    32.87%
    21.07%
    13.52%
  """
  check_integer("rounds", rounds, 0)
  shares = layer_rates(list(sizes), fraction, rates)
  steps = [dict(sizes)]
  for _ in range(rounds):
    before = list(steps[-1].values())
    after = [n - round(float(s) * n) for n, s in zip(before, shares, strict=True)]
    _check_left(after, before, list(sizes), shares)
    steps.append(dict(zip(sizes, after, strict=True)))
  return steps


def keep_rate(density: float, rounds: int) -> float:
  """Computes the fraction of live weights that each of several equal rounds keeps.

  r = P^(1 / n), so that r^n = P

  Args:
    density: P, the density after the last round, in (0, 1].
    rounds: n, the number of rounds, at least 1.

  Returns:
    r, the fraction kept per round; pass `1 - r` to `prune`.

  Raises:
    ValueError: an argument is outside its range.

  References:
    Frankle and Carbin 2019, section 1. The paper says that each round prunes p^(1/n) %
    of the weights that remain; p must be read as the percentage *kept* at the end.

  Example:
    >>> round(keep_rate(0.5, 3), 4)
    0.7937
  """
  check_number("density", density, "be in (0, 1]", lambda v: 0 < v <= 1)
  check_integer("rounds", rounds, 1)
  return math.pow(density, 1 / rounds)


def layer_rates(
  paths: Sequence[str],
  fraction: float | Array,
  rates: Mapping[str, float] | None = None,
) -> list[float | Array]:
  """Returns the fraction of live weights that `prune` drops from each layer.

  Args:
    paths: the paths of the layers.
    fraction: the fraction for layers whose path no regex matches.
    rates: `{regex of paths: fraction}`; the first regex found in a path applies.

  Returns:
    One fraction per path.

  Example:
    >>> layer_rates(["conv1/kernel", "dense1/kernel"], 0.2, {"conv": 0.1})
    [0.1, 0.2]
  """
  rates = {} if rates is None else rates
  check_mapping("rates", rates, "from a regex to a fraction")
  for name, value in (("fraction", fraction), *rates.items()):
    if isinstance(value, Tracer):
      continue
    where = name if name == "fraction" else f"rates[{name!r}]"
    known = np.asarray(value)[()] if isinstance(value, Array) else value
    check_number(where, known, "be in (0, 1)", lambda v: 0 < v < 1)
  for pattern in rates:
    if not any(re.search(pattern, path) for path in paths):
      raise ValueError(f"rates must match layers, got {pattern!r} for {list(paths)}.")
  return [
    next((s for r, s in rates.items() if re.search(r, path)), fraction)
    for path in paths
  ]


# Jitted as a whole, because run eagerly the loops of every layer compile separately.
@functools.partial(jax.jit, static_argnames=("rates", "scope", "axes"))
def _prune(worth, masks, fraction, *, rates, scope, axes: tuple[LayerAxes, ...]):
  """Returns the masks, the live counts before and after, and whether scores are valid.

  Scores are valid where no score of a live weight is NaN or +inf.
  """
  like = jax.tree.structure(masks).unflatten(a.budget for a in axes)
  live = live_counts(masks, like)
  # Compute the number of weights to keep in 64 bits, so that it is exact for any size.
  with jax.enable_x64(True):
    # None marks a traced fraction, which all layers without a rate of their own share.
    shares = [fraction if r is None else r for r in rates]
    shares = jnp.stack([jnp.asarray(s).astype(jnp.float64) for s in shares])
    wide = live.astype(jnp.int64)
    if scope == "global":
      wide, shares = jnp.sum(wide), shares[0]
    keep = wide - jnp.round(shares * wide.astype(jnp.float64)).astype(jnp.int64)
  # Select the best weights: over all layers, or within each layer.
  if scope == "global":
    kept = keep_best(worth, masks, keep)
    left = live_counts(kept, like)
  else:
    left = keep.astype(jnp.int32)
    some = jnp.maximum(left, jnp.minimum(live, 1))
    # Rank NaN last: traced scores are not checked, and the counts must stay exact.
    ranked = jax.tree.map(lambda s: jnp.where(jnp.isnan(s), -jnp.inf, s), worth)
    kept = top_k_masks(ranked, from_vector(some, like), masks)
  return kept, live, left, scores_are_finite(worth, masks)


def _check_left(left, before, names, shares) -> None:
  for n, m, name, share in zip(left, before, names, shares, strict=True):
    if n == 0 and m > 0:
      raise ValueError(
        f"fraction must leave a live weight in every layer, got {share} of the"
        f" {int(m)} in {name!r}."
      )
