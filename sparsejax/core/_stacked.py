"""Leaves that stack layers: budgets say along which axes.

A budget broadcasts against the leading axes of its mask: () for a leaf that is one
layer, (8,) where axis 0 stacks eight layers, (1, 8) where axis 1 does, (4, 1, 8) for
axes 0 and 2 of nested scans.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Array = jax.Array
Budget = Array | jax.ShapeDtypeStruct  # only its shape matters


def budget_shape(shape: Sequence[int], stacked: Sequence[int]) -> tuple[int, ...]:
  """Returns the shape of a leaf's budget.

  Args:
    shape: of the leaf.
    stacked: its axes that stack layers, in rising order.

  Returns:
    The lengths of the stacked axes at their places, 1 at the places before and between
    them.

  Example:
    >>> budget_shape((16, 8, 32), (1,))
    (1, 8)
  """
  last = max(stacked, default=-1)
  return tuple(shape[i] if i in stacked else 1 for i in range(last + 1))


def stacked_axes(budget: Budget) -> tuple[int, ...]:
  """Returns the axes that stack layers, as a budget's shape says; see `budget_shape`.

  Axes of length one before the last axis are none: there the answer is the same.
  """
  last = len(budget.shape) - 1
  return tuple(i for i, n in enumerate(budget.shape) if n > 1 or i == last)


def rows_first(x: Array, budget: Budget) -> Array:
  """Moves the axes that stack layers to the front; a transpose, which moves no shard.

  Args:
    x: the leaf's weights, scores or mask.
    budget: its budget.

  Returns:
    `x` with the `len(stacked_axes(budget))` axes that stack layers in front.
  """
  axes = stacked_axes(budget)
  front = tuple(range(len(axes)))
  return x if axes == front else jnp.moveaxis(x, axes, front)


def rows_back(x: Array, budget: Budget) -> Array:
  """Undoes `rows_first`."""
  axes = stacked_axes(budget)
  front = tuple(range(len(axes)))
  return x if axes == front else jnp.moveaxis(x, front, axes)
