"""Drop: masks the live weights with the lowest scores."""

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
# Fractions are rounded to a millionth, so that ceil(0.3 * 10) is 3, not 4.
_RESOLUTION = 1_000_000
_SCOPES = ("layer", "global", "sign")


def drop(score: Score, fraction: Fraction, scope: str = "layer") -> MaskTransform:
  """Drops each layer's worst live weights; budgets are unchanged.

  live_l = max(budget_l - ceil(fraction * budget_l), 1)

  `scope="global"` drops the same total number from the worst weights of the whole
  network, but never a layer's last weight. `scope="sign"` drops the same number per
  layer, divided between its positive and its negative weights in proportion to their
  numbers: SET's own rule.

  Args:
    score: the score of each weight; the lowest are dropped.
    fraction: fraction of the budget to drop, in [0, 1), rounded to a millionth: a
      float, a schedule `step -> float`, or a rule `(inputs, topology) -> (layers,)`.
      Values of a schedule or rule are clipped to [0, 1]; NaN skips the mask update,
      and the state counts the skip.
    scope: the weights that are compared: "layer", "global" (the scores must then share
      one dtype) or "sign". Structures support "layer" only.

  Returns:
    A mask transform. A layer with live weights keeps at least one.

  Raises:
    ValueError: a static fraction is outside [0, 1); scope is none of the three; at a
      mask update: fraction gives neither one number nor one per layer.
    TypeError: fraction is neither a float, a schedule nor a rule.

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
    # How many weights each layer drops, as a vector over the layers.
    scores = score(inputs)
    budget = to_vector(budgets)
    share, sound = checked_fraction(rule(inputs, topology), budget)
    dropped = ceil_fraction(share, budget)
    finite = finite & sound & scores_are_finite(scores, masks)
    if scope == "sign":
      masks = _keep_by_sign(scores, dropped, budgets, masks, inputs.params)
      return topology._replace(masks=masks, finite=finite), state
    # How many each layer keeps; with "global", the best of the whole network decide.
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

  return MaskTransform(lambda params: (), update, fits, keeps_budgets=True)


def _keep_by_sign(scores, dropped: Array, budgets: PyTree, masks: PyTree, params):
  """Drops a layer's worst positive and worst negative weights in proportion."""
  positive = jax.tree.map(lambda m, p: m & (p >= 0), masks, params)
  negative = jax.tree.map(lambda m, p: m & (p < 0), masks, params)
  plus, minus = live_counts(positive, budgets), live_counts(negative, budgets)
  live = plus + minus
  # round(dropped * plus / live) of the positive weights, in integers; the rest of
  # `dropped` are negative weights.
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
    name: the argument's name in error messages.

  Returns:
    A rule that returns a scalar or an array (layers,).

  Raises:
    ValueError: a static fraction is outside [0, 1).
    TypeError: fraction is neither a float, a schedule nor a rule.
  """
  if callable(fraction):
    rule: Any = fraction  # a schedule or a rule, by its number of arguments
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
  """Validates the value of a user's schedule or rule.

  Args:
    fraction: the value returned by a rule of `fraction_rule`.
    budget: int32 (layers,).
    name: the argument's name in error messages.

  Returns:
    The fraction with 0 in place of NaN, and a bool that is False if there was a NaN.

  Raises:
    ValueError: the value is neither one number nor one per layer.
  """
  fraction = jnp.asarray(fraction)
  number = jnp.issubdtype(fraction.dtype, jnp.number)
  if not number or fraction.shape not in ((), budget.shape):
    raise ValueError(
      f"{name} must return one number or one per layer, {budget.size} in all, got "
      f"{fraction.dtype}{list(fraction.shape)}."
    )
  sound = ~jnp.isnan(fraction)
  return jnp.where(sound, fraction, jnp.zeros_like(fraction)), jnp.all(sound)


def required_arguments(f: Callable) -> int:
  """Returns how many positional arguments a function requires; 1 if it is unknown."""
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
  """Computes ceil(fraction * budget) in integers, for budgets of any size."""
  with jax.enable_x64(True):
    share = jnp.clip(jnp.asarray(fraction).astype(jnp.float64), 0.0, 1.0)
    share = jnp.round(share * jnp.float64(_RESOLUTION)).astype(jnp.int64)
    product = budget.astype(jnp.int64) * share
    return (-(-product // jnp.int64(_RESOLUTION))).astype(jnp.int32)
