"""Drop: each layer loses the worst of its live weights."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core.budgets import from_vector, to_vector
from sparsejax.core.layerwise import top_k_masks, usable
from sparsejax.core.structures.base import fits_any
from sparsejax.core.types import MaskTransform, PyTree, Score, ScoreInputs, Topology

Array = jax.Array
Fraction = (
  float | Array | Callable[[Array], Array] | Callable[[ScoreInputs, Topology], Array]
)
# Fractions are resolved to a millionth, so that 0.3 of 10 weights are 3, not 4.
_RESOLUTION = 1_000_000


def drop(score: Score, fraction: Fraction) -> MaskTransform:
  """Keeps each layer's best live weights; budgets stay.

  live_l = max(budget_l - ceil(fraction * budget_l), 1)

  Args:
    score: what a weight is worth.
    fraction: the share of the budget to drop, in [0, 1), to a millionth: a float, a
      schedule `step -> float`, or a rule `(inputs, topology) -> (layers,)`. What a
      schedule or rule gives is clipped to [0, 1].

  Returns:
    A mask transform. At least one weight stays in a layer that has one.

  Raises:
    ValueError: a static fraction is outside [0, 1).
    TypeError: fraction is none of these.

  Example:
    >>> import sparsejax as sj
    >>> evolve = sj.chain(sj.drop(sj.magnitude, 0.3), sj.grow(sj.random))
  """
  rule = fraction_rule(fraction)

  def update(inputs: ScoreInputs, topology: Topology, state: PyTree):
    masks, budgets, finite, structure = topology
    scores = score(inputs)
    budget = to_vector(budgets)
    keep = jnp.maximum(
      budget - _ceil_fraction(rule(inputs, topology), budget), jnp.minimum(budget, 1)
    )
    finite = finite & usable(scores, masks)
    keep_best = top_k_masks if structure is None else structure.keep
    masks = keep_best(scores, from_vector(keep, budgets), masks)
    return topology._replace(masks=masks, finite=finite), state

  return MaskTransform(lambda params: (), update, fits_any)


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
    if _required_arguments(rule) >= 2:
      return rule
    return lambda inputs, topology: rule(inputs.step)
  if isinstance(fraction, (jax.Array, np.ndarray)):
    if fraction.ndim == 0:
      return lambda inputs, topology: jnp.asarray(fraction)
  elif isinstance(fraction, (int, float, np.number)) and not isinstance(fraction, bool):
    if not 0 <= fraction < 1:
      raise ValueError(f"{name} must lie in [0, 1), got {fraction}.")
    return lambda inputs, topology: jnp.asarray(fraction)
  raise TypeError(
    f"{name} must be a float in [0, 1), a schedule or a function of (inputs, "
    f"topology), got {fraction!r}."
  )


def _required_arguments(f: Callable) -> int:
  try:
    parameters = inspect.signature(f).parameters.values()
  except (TypeError, ValueError):  # a builtin or a compiled function
    return 1
  positional = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
  )
  return sum(p.kind in positional and p.default is p.empty for p in parameters)


def _ceil_fraction(fraction, budget: Array) -> Array:
  """ceil(fraction * budget) in integers, for budgets of any size."""
  with jax.enable_x64(True):
    share = jnp.clip(jnp.asarray(fraction).astype(jnp.float64), 0.0, 1.0)
    share = jnp.round(share * jnp.float64(_RESOLUTION)).astype(jnp.int64)
    product = budget.astype(jnp.int64) * share
    return (-(-product // jnp.int64(_RESOLUTION))).astype(jnp.int32)
