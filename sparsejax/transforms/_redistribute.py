"""Mask transforms that change budgets: `redistribute` between layers, and `extend`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.core import (
  MaskTransform,
  PyTree,
  Score,
  ScoreInputs,
  Topology,
  apportion_equal_spill,
  check_score,
  from_vector,
  layer_shapes,
  layer_sizes,
  live_counts,
  mean_scores,
  plain_axes,
  scores_are_finite,
  to_vector,
)
from sparsejax.core.structures import common_unit, fits_any
from sparsejax.transforms._drop import (
  Fraction,
  ceil_fraction,
  checked_fraction,
  fraction_rule,
  required_arguments,
)

Rule = Callable[[ScoreInputs, Topology], jax.Array]


def redistribute(score: Score | Rule) -> MaskTransform:
  """Moves the free budget of all layers to those with the highest mean score.

  budget_l = live_l + share_l * sum_k (budget_k - live_k),
  share_l = mean of the score over the weights live before the chain, normalized

  The free budget of a layer is its budget minus its live weights. Shares are means, so
  they do not depend on the size of a layer. Numbers are rounded to integers by largest
  remainder. What a full layer cannot take is divided equally among the layers with
  room. If all shares are zero, each layer keeps its budget. The sum of the budgets
  never changes.

  Args:
    score: the score of live weights; negative values count as zero. Or a rule
      `(inputs, topology) -> (layers,)` that returns the shares: `sj.nonzeros`,
      `sj.survivors`. Shares that are NaN or infinite skip the mask update.

  Returns:
    A mask transform that changes budgets only.

  Raises:
    TypeError: score is not a function.
    ValueError: at a mask update: a rule does not return one number per layer.

  References:
    Dettmers & Zettlemoyer 2019, "Sparse networks from scratch", algorithm 1. The
    reference rounds up and corrects the total later; here it is exact at once.

  Example:
    >>> import sparsejax as sj
    >>> move = sj.redistribute(sj.momentum)
  """
  if not callable(score) or required_arguments(score) < 2:
    check_score("score", score)
  by_score: Any = score  # a score or a rule, by its number of arguments
  rule: Any = score if required_arguments(score) >= 2 else None

  def update(inputs: ScoreInputs, topology: Topology, state: PyTree):
    masks, budgets, finite, structure, axes = topology
    axes = plain_axes(masks, budgets) if axes is None else axes
    # Under a structure budgets move in multiples of this number of weights.
    unit = common_unit(structure, layer_shapes(axes))
    # The share of each layer, from the score's means or from the rule.
    if rule is None:
      scores = by_score(inputs)
      finite = finite & scores_are_finite(scores, inputs.masks)
      with jax.enable_x64(True):
        share = mean_scores(scores, inputs.masks, budgets)
    else:
      share = jnp.asarray(rule(inputs, topology))
      layers = len(layer_sizes(masks, budgets))
      if share.shape != (layers,) or not jnp.issubdtype(share.dtype, jnp.number):
        raise ValueError(
          f"score must return a number per layer, {layers} in all, got "
          f"{share.dtype}{list(share.shape)}."
        )
      sound = jnp.isfinite(share)
      finite = finite & jnp.all(sound)
      share = jnp.where(sound, share, jnp.zeros_like(share))
    # Divide the sum of the free budgets by the shares; no layer gets more than its
    # masked weights. Totals over large networks need 64 bits.
    live, budget = live_counts(masks, budgets), to_vector(budgets)
    sizes = layer_sizes(masks, budgets)
    with jax.enable_x64(True):
      free = budget.astype(jnp.int64) - live.astype(jnp.int64)
      room = jnp.asarray(sizes) - live.astype(jnp.int64)
      if unit > 1:
        free, room = free // jnp.int64(unit), room // jnp.int64(unit)
      given = apportion_equal_spill(share, jnp.sum(free), room, fallback=free)
    budgets = from_vector(live + given * unit, budgets)
    return topology._replace(budgets=budgets, finite=finite), state

  def fits(structure, shapes):
    common_unit(structure, shapes)

  return MaskTransform(lambda params: (), update, fits)


def nonzeros(inputs: ScoreInputs, topology: Topology) -> jax.Array:
  """Returns shares in proportion to the weights live before the chain.

  share_l ~ live_l before any was dropped

  Args:
    inputs: what scores may look at.
    topology: masks and budgets at this place of the chain.

  Returns:
    int32 (layers,).

  References:
    Dettmers & Zettlemoyer 2019 (`nonzero` in the authors' implementation).

  Example:
    >>> import sparsejax as sj
    >>> transform = sj.redistribute(sj.nonzeros)
  """
  return live_counts(inputs.masks, topology.budgets)


def survivors(inputs: ScoreInputs, topology: Topology) -> jax.Array:
  """Returns shares in proportion to the weights live at this point of the chain.

  share_l ~ live_l after others were dropped

  Args:
    inputs: what scores may look at.
    topology: masks and budgets at this place of the chain.

  Returns:
    int32 (layers,).

  References:
    Mostafa & Wang 2019, "Parameter efficient training of deep convolutional neural
    networks by dynamic sparse reparameterization", algorithm 1.

  Example:
    >>> import sparsejax as sj
    >>> transform = sj.redistribute(sj.survivors)
  """
  return live_counts(topology.masks, topology.budgets)


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
