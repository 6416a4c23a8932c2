"""Accumulate: scores that use all steps, not only the step of the mask update."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.core import (
  MaskTransform,
  PyTree,
  Score,
  ScoreInputs,
  Topology,
  check_flag,
  check_number,
  check_score,
)
from sparsejax.core.structures import check_fits
from sparsejax.transforms._moments import wide_zeros


class AccumulateState(NamedTuple):
  """The state of `accumulate`.

  Attributes:
    total: tree of floats with the shapes of the weights, float32 or wider.
    transform_state: the state of the inner mask transform.
  """

  total: PyTree
  transform_state: PyTree


def accumulate(
  quantity: Score,
  transform: MaskTransform,
  decay: float = 1.0,
  reset: bool = False,
) -> MaskTransform:
  """Sums a quantity over all steps for the scores of another mask transform.

  total <- decay * total + quantity, at every step; inputs.accumulated = total

  Values that are not finite are left out of the sum; otherwise one such value would
  make it NaN or infinite for all later steps.

  Args:
    quantity: the quantity to sum, `(inputs) -> tree`, such as `sj.movement`.
    transform: the mask transform whose scores use the sum, such as `sj.accumulated` and
      `sj.accumulated_magnitude`.
    decay: factor on the sum at every step, in (0, 1].
    reset: whether each mask update sets the sum to zero.

  Returns:
    A mask transform that keeps the sum in its state.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: decay is outside (0, 1].

  Example:
    >>> import sparsejax as sj
    >>> transform = sj.accumulate(sj.movement, sj.prune_to(sj.accumulated, 0.1))
  """
  check_score("quantity", quantity)
  check_flag("reset", reset)
  if not isinstance(transform, MaskTransform):
    raise TypeError(f"transform must be a MaskTransform, got {transform!r}.")
  check_number("decay", decay, "lie in (0, 1]", lambda v: 0 < v <= 1)

  def init(params: PyTree):
    return AccumulateState(jax.tree.map(wide_zeros, params), transform.init(params))

  def observe(inputs: ScoreInputs, state: AccumulateState):
    def add(total, x):
      x = x.astype(total.dtype)
      return decay * total + jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x))

    total = jax.tree.map(add, state.total, quantity(inputs))
    inside = state.transform_state
    if transform.observe is not None:
      inside = transform.observe(inputs._replace(accumulated=total), inside)
    return AccumulateState(total, inside)

  def update(inputs: ScoreInputs, topology: Topology, state: AccumulateState):
    inputs = inputs._replace(accumulated=state.total)
    topology, inside = transform.update(inputs, topology, state.transform_state)
    total = jax.tree.map(jnp.zeros_like, state.total) if reset else state.total
    return topology, AccumulateState(total, inside)

  def fits(structure, shapes):
    check_fits(transform, structure, shapes)

  return MaskTransform(
    init, update, fits, observe, transform.check, transform.keeps_budgets
  )
