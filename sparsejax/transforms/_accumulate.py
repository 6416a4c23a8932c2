"""Accumulate: scores that look at all steps, not only at that of the mask update."""

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
    total: tree of floats, of the weights' shapes; float32 at least.
    transform_state: the state of the transform inside.
  """

  total: PyTree
  transform_state: PyTree


def accumulate(
  quantity: Score,
  transform: MaskTransform,
  decay: float = 1.0,
  reset: bool = False,
) -> MaskTransform:
  """Sums a quantity over the steps for the scores of another mask transform.

  total <- decay * total + quantity, at every step; inputs.accumulated = total

  Values that are not finite are left out of the sum, so that one bad step does not
  spoil it for good.

  Args:
    quantity: what is summed, `(inputs) -> tree`, such as `sj.movement`.
    transform: whose scores read the sum: `sj.accumulated`, `sj.accumulated_magnitude`.
    decay: what is kept of the sum from step to step, in (0, 1].
    reset: whether the sum starts from zero again after each mask update.

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

  return MaskTransform(init, update, fits, observe, transform.check)
