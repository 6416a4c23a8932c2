"""Leaves that stack several layers; the shape of a budget says along which axes.

The axes of a budget correspond to the leading axes of its mask. Its shape is () for a
leaf that is one layer, (8,) where axis 0 stacks eight layers, (1, 8) where axis 1 does,
and (4, 1, 8) for axes 0 and 2, as in nested scans.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Array = jax.Array
Budget = Array | jax.ShapeDtypeStruct  # only its shape matters


def budget_shape(shape: Sequence[int], stacked: Sequence[int]) -> tuple[int, ...]:
  """Returns the shape of a leaf's budget.

  Args:
    shape: the shape of the leaf.
    stacked: the axes of the leaf that stack layers, in increasing order.

  Returns:
    A shape with one entry per axis up to the last stacked one: the length of a stacked
    axis, and 1 for the others.

  Example:
    >>> budget_shape((16, 8, 32), (1,))
    (1, 8)
  """
  last = max(stacked, default=-1)
  return tuple(shape[i] if i in stacked else 1 for i in range(last + 1))


def stacked_axes(budget: Budget) -> tuple[int, ...]:
  """Returns the axes that stack layers, from a budget's shape; see `budget_shape`.

  An axis of length 1 before the last one counts as not stacked, whether or not it was
  declared; the result of a selection is the same.
  """
  last = len(budget.shape) - 1
  return tuple(i for i, n in enumerate(budget.shape) if n > 1 or i == last)


def rows_first(x: Array, budget: Budget) -> Array:
  """Moves the axes that stack layers to the front, by a transpose.

  A transpose needs no communication between devices.

  Args:
    x: the weights, scores or mask of a leaf.
    budget: the budget of the leaf.

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
