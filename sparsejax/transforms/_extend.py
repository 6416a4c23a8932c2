"""Extend: raises every layer's budget by a fraction."""

import jax.numpy as jnp

from sparsejax.core import (
  MaskTransform,
  PyTree,
  ScoreInputs,
  Topology,
  from_vector,
  layer_shapes,
  layer_sizes,
  plain_axes,
  to_vector,
)
from sparsejax.core.structures import fits_any
from sparsejax.transforms._drop import (
  Fraction,
  ceil_fraction,
  checked_fraction,
  fraction_rule,
)


def extend(fraction: Fraction) -> MaskTransform:
  """Raises each layer's budget by a fraction of it; masks are unchanged.

  budget_l <- min(budget_l + ceil(fraction * budget_l), size_l)

  Follow it by `grow`, which fills the budgets, and precede it by `prune_to`, which sets
  them; otherwise they rise with every mask update.

  Args:
    fraction: fraction of the budget to add, in [0, 1), given as in `drop`.

  Returns:
    A mask transform that changes budgets only. Under a structure the budgets are
    rounded to numbers that it allows.

  Raises:
    ValueError: a static fraction is outside [0, 1); at a mask update: fraction gives
      neither one number nor one per layer.
    TypeError: fraction is neither a float, a schedule nor a rule.

  References:
    Yuan et al. 2021, "MEST: accurate and fast memory-economic sparse training framework
    on the edge" (soft memory bound).

  Example:
    >>> import sparsejax as sj
    >>> prune = sj.prune_to(sj.magnitude, 0.1, sj.erk)
    >>> transform = sj.chain(prune, sj.extend(0.3), sj.grow(sj.random))
  """
  rule = fraction_rule(fraction)

  def update(inputs: ScoreInputs, topology: Topology, state: PyTree):
    masks, budgets, finite, structure, axes = topology
    budget = to_vector(budgets)
    share, sound = checked_fraction(rule(inputs, topology), budget)
    # `budget` is at most `size`, so the difference cannot overflow; the sum could.
    room = jnp.asarray(layer_sizes(masks, budgets), budget.dtype) - budget
    more = budget + jnp.minimum(ceil_fraction(share, budget), room)
    if structure is not None:
      # Rounding may take from one layer what it gives to another, but none may have
      # less than before: its weights are live already.
      axes = plain_axes(masks, budgets) if axes is None else axes
      more = jnp.maximum(structure.fit(layer_shapes(axes), more), budget)
    budgets = from_vector(more, budgets)
    return topology._replace(budgets=budgets, finite=finite & sound), state

  return MaskTransform(lambda params: (), update, fits_any)
