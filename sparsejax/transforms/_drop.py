"""Drop: each layer loses the worst of its live weights."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core import (
  MaskTransform,
  PyTree,
  Score,
  ScoreInputs,
  Topology,
  check_number,
  check_score,
  from_vector,
  live_counts,
  scores_are_finite,
  split_layers,
  to_vector,
  top_k_masks,
)

Array = jax.Array
Fraction = (
  float | Array | Callable[[Array], Array] | Callable[[ScoreInputs, Topology], Array]
)
# Fractions are resolved to a millionth, so that 0.3 of 10 weights are 3, not 4.
_RESOLUTION = 1_000_000
_SCOPES = ("layer", "global", "sign")


def drop(score: Score, fraction: Fraction, scope: str = "layer") -> MaskTransform:
  """Keeps each layer's best live weights; budgets stay.

  live_l = max(budget_l - ceil(fraction * budget_l), 1)

  `scope="global"` drops as many from the worst of the whole network, but never a
  layer's last weight. `scope="sign"` drops as many a layer, from its positive and its
  negative weights apart, in proportion to their numbers: SET's own rule.

  Args:
    score: what a weight is worth.
    fraction: the share of the budget to drop, in [0, 1), to a millionth: a float, a
      schedule `step -> float`, or a rule `(inputs, topology) -> (layers,)`. What a
      schedule or rule gives is clipped to [0, 1]; NaN skips the mask update, and the
      state counts it.
    scope: among which weights the worst are sought: "layer", "global" (the scores
      must then share one dtype) or "sign". Structures go with "layer" only.

  Returns:
    A mask transform. At least one weight stays in a layer that has one.

  Raises:
    ValueError: a static fraction is outside [0, 1); scope is none of the three; at a
      mask update: fraction gives neither one number nor one per layer.
    TypeError: fraction is none of these.

  Example:
    >>> import sparsejax as sj
    >>> evolve = sj.chain(sj.drop(sj.magnitude, 0.3), sj.grow(sj.random))
  """
  check_score("score", score)
  rule = fraction_rule(fraction)
  if scope not in _SCOPES:
    raise ValueError(f"scope must be one of {list(_SCOPES)}, got {scope!r}.")

  def update(inputs: ScoreInputs, topology: Topology, state: PyTree):
    masks, budgets, finite, structure, axes = topology
    scores = score(inputs)
    budget = to_vector(budgets)
    share, sound = checked_fraction(rule(inputs, topology), budget)
    dropped = ceil_fraction(share, budget)
    finite = finite & sound & scores_are_finite(scores, masks)
    if scope == "sign":
      masks = _keep_by_sign(scores, dropped, budgets, masks, inputs.params)
      return topology._replace(masks=masks, finite=finite), state
    keep = budget - dropped
    if scope == "global":
      with jax.enable_x64(True):
        total = jnp.sum(keep.astype(jnp.int64))
      keep = split_layers(scores, total, masks, budgets)
    keep = jnp.maximum(keep, jnp.minimum(budget, 1))
    counts = from_vector(keep, budgets)
    if structure is None:
      masks = top_k_masks(scores, counts, masks)
    else:
      masks = structure.keep(scores, counts, masks, axes=axes)
    return topology._replace(masks=masks, finite=finite), state

  def fits(structure, shapes):
    if scope != "layer":
      raise ValueError(
        f"scope must be 'layer' under the structure {structure.name}, got {scope!r}."
      )

  return MaskTransform(lambda params: (), update, fits)


def _keep_by_sign(scores, dropped: Array, budgets: PyTree, masks: PyTree, params):
  """Drops from the positive and the negative weights of a layer in proportion."""
  positive = jax.tree.map(lambda m, p: m & (p >= 0), masks, params)
  negative = jax.tree.map(lambda m, p: m & (p < 0), masks, params)
  plus, minus = live_counts(positive, budgets), live_counts(negative, budgets)
  live = plus + minus
  dropped = jnp.minimum(dropped, jnp.maximum(live - 1, 0))
  with jax.enable_x64(True):
    wide, n = jnp.int64(2) * dropped.astype(jnp.int64), live.astype(jnp.int64)
    share = (wide * plus.astype(jnp.int64) + n) // jnp.maximum(2 * n, jnp.int64(1))
    share = share.astype(jnp.int32)
  keep = (plus - share, minus - (dropped - share))
  keep = tuple(from_vector(k, budgets) for k in keep)
  kept = top_k_masks((scores, scores), keep, (positive, negative))
  return jax.tree.map(jnp.logical_or, *kept)


def fraction_rule(
  fraction: Fraction, name: str = "fraction"
) -> Callable[[ScoreInputs, Topology], Array]:
  """Turns a float, schedule or rule into a rule `(inputs, topology) -> floats`.

  Args:
    fraction: as in `drop`.
    name: the argument's name in messages.

  Returns:
    A function giving a scalar or (layers,).

  Raises:
    ValueError: a static fraction is outside [0, 1).
    TypeError: fraction is none of these.
  """
  if callable(fraction):
    rule: Any = fraction  # which of the two it is, only its signature tells
    if required_arguments(rule) >= 2:
      return rule
    return lambda inputs, topology: rule(inputs.step)
  if isinstance(fraction, (jax.Array, np.ndarray)):
    if fraction.ndim == 0:
      if isinstance(fraction, np.ndarray):
        check_number(name, fraction[()], "lie in [0, 1)", lambda v: 0 <= v < 1)
      return lambda inputs, topology: jnp.asarray(fraction)
  elif isinstance(fraction, (int, float, np.number)) and not isinstance(fraction, bool):
    check_number(name, fraction, "lie in [0, 1)", lambda v: 0 <= v < 1)
    return lambda inputs, topology: jnp.asarray(fraction)
  raise TypeError(
    f"{name} must be a float in [0, 1), a schedule or a function of (inputs, "
    f"topology), got {fraction!r}."
  )


def checked_fraction(
  fraction: Any, budget: Array, name: str = "fraction"
) -> tuple[Array, Array]:
  """Validates what a user's schedule or rule gave.

  Args:
    fraction: of `fraction_rule`'s rule.
    budget: int32 (layers,).
    name: the argument's name in messages.

  Returns:
    The fraction, 0 where it is NaN, and whether it is nowhere NaN.

  Raises:
    ValueError: it is neither one number nor one per layer.
  """
  fraction = jnp.asarray(fraction)
  number = jnp.issubdtype(fraction.dtype, jnp.number)
  if not number or fraction.shape not in ((), budget.shape):
    raise ValueError(
      f"{name} must give one number or one per layer, {budget.size} in all, got "
      f"{fraction.dtype}{list(fraction.shape)}."
    )
  sound = ~jnp.isnan(fraction)
  return jnp.where(sound, fraction, jnp.zeros_like(fraction)), jnp.all(sound)


def required_arguments(f: Callable) -> int:
  """How many positional arguments a function must be given; 1 if it does not tell."""
  try:
    parameters = inspect.signature(f).parameters.values()
  except (TypeError, ValueError):  # a builtin or a compiled function
    return 1
  positional = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
  )
  return sum(p.kind in positional and p.default is p.empty for p in parameters)


def ceil_fraction(fraction, budget: Array) -> Array:
  """ceil(fraction * budget) in integers, for budgets of any size."""
  with jax.enable_x64(True):
    share = jnp.clip(jnp.asarray(fraction).astype(jnp.float64), 0.0, 1.0)
    share = jnp.round(share * jnp.float64(_RESOLUTION)).astype(jnp.int64)
    product = budget.astype(jnp.int64) * share
    return (-(-product // jnp.int64(_RESOLUTION))).astype(jnp.int32)
