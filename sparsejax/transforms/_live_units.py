"""The live weights of a kernel as one small array: gather, scatter, follow the masks.

A unit is a block of inputs and outputs, or a single weight. The live units of a leaf
are listed by their indices, its places. An array of live weights has the rank of its
kernel, so that functions that look at ranks, such as the `mask` of `optax.adamw`, treat
both alike.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.core import LayerAxes

Array = jax.Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Units:
  """The units of one leaf; static.

  Attributes:
    axes: the axes of the leaf.
    block: (bi, bo), inputs and outputs of one unit; (1, 1) for single weights.
    capacity: the largest number of live units.
  """

  axes: LayerAxes
  block: tuple[int, int]
  capacity: int

  @property
  def grid(self) -> tuple[int, int]:
    """The number of units along (stacked, taps, inputs) and along outputs."""
    bi, bo = self.block
    shape = self.axes.shape
    if (bi, bo) == (1, 1):
      return math.prod(shape), 1
    outputs = self.axes.length(self.axes.outputs)
    return math.prod(shape) // outputs // bi, outputs // bo

  @property
  def number(self) -> int:
    """The number of units of the leaf, live or masked."""
    return math.prod(self.grid)

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the array of live weights; its rank is that of the leaf."""
    bi, bo = self.block
    if len(self.axes.shape) == 1:
      return (self.capacity,)
    ones = (1,) * (len(self.axes.shape) - 2)
    if (bi, bo) == (1, 1):
      return (*ones, 1, self.capacity)
    return (*ones, self.capacity * bi, bo)

  @property
  def single(self) -> bool:
    """Returns whether units are single weights in the order of the leaf."""
    return self.block == (1, 1)


@functools.partial(jax.jit, static_argnames="units", inline=True)
def list_places(mask: Array, units: Units) -> Array:
  """Lists the units with a live weight, in increasing order; missing ones at the end.

  Args:
    mask: bool array of the leaf's shape.
    units: its units.

  Returns:
    int32 (capacity,); the numbers after the last live unit are `units.number`.
  """
  if units.single:
    flat = mask.reshape(-1)
  else:
    flat = jnp.any(_blocks(mask, units), (1, 3)).reshape(-1)
  [places] = jnp.nonzero(flat, size=units.capacity, fill_value=units.number)
  return places.astype(jnp.int32)


@functools.partial(jax.jit, static_argnames="units", inline=True)
def gather(x: Array, places: Array, units: Units) -> Array:
  """Returns the weights of the listed units, zero (or False) past the last one.

  Args:
    x: array of the leaf's shape.
    places: int32 (capacity,), made by `list_places`.
    units: the units of the leaf.

  Returns:
    Array of shape `units.shape`.
  """
  if units.single:
    values = x.reshape(-1).at[places].get(mode="fill", fill_value=0)
  else:
    row, column = _row_and_column(places, units)
    blocks = _blocks(x, units)
    values = blocks.at[row, :, column, :].get(mode="fill", fill_value=0)
  return values.reshape(units.shape)


def scatter(values: Array, places: Array, units: Units) -> Array:
  """Inverts `gather`; all other weights are zero.

  Args:
    values: array of shape `units.shape`.
    places: int32 (capacity,), made by `list_places`.
    units: the units of the leaf.

  Returns:
    Array of the leaf's shape.
  """
  bi, bo = units.block
  if units.single:
    zeros = jnp.zeros(units.number, values.dtype)
    flat = zeros.at[places].set(values.reshape(-1), mode="drop")
    return flat.reshape(units.axes.shape)
  rows, columns = units.grid
  zeros = jnp.zeros((rows, bi, columns, bo), values.dtype)
  row, column = _row_and_column(places, units)
  values = values.reshape(units.capacity, bi, bo)
  blocks = zeros.at[row, :, column, :].set(values, mode="drop")
  # Back from the order (stacked, taps, inputs, outputs) to that of the leaf.
  order = units.axes.order
  leaf = blocks.reshape([units.axes.shape[i] for i in order])
  return jnp.transpose(leaf, [order.index(i) for i in range(leaf.ndim)])


# Compiled once per optimizer: in a loop without `jit`, a `cond` on closures that are
# new at every step would be compiled at every step. Under an outer `jit` it is inlined.
@functools.partial(jax.jit, static_argnames="units", inline=True)
def follow_masks(
  due: Array,
  masks: list[Array],
  places: list[Array],
  moments: list[list[Array]],
  units: tuple[Units, ...],
) -> tuple[list[Array], list[list[Array]]]:
  """Lists the units that are live now, and moves their moments, if masks may differ.

  Moments of units that stay live are kept bit for bit. Those of newly live units start
  from zero.

  Args:
    due: bool, whether the masks may have changed in this step.
    masks: the masks of all sparsified leaves.
    places: the places of the last step.
    moments: for each leaf, its arrays in the inner optimizer's state, of shape
      `units.shape`.
    units: the units of all leaves.

  Returns:
    The new places and moments.
  """

  def move():
    new = [list_places(mask, u) for mask, u in zip(masks, units, strict=True)]
    moved = []
    for old, now, arrays, u in zip(places, new, moments, units, strict=True):
      # The index at which each unit was listed; `capacity` if it was not.
      index = jnp.arange(u.capacity, dtype=jnp.int32)
      table = jnp.full(u.number, u.capacity, jnp.int32).at[old].set(index, mode="drop")
      source = table.at[now].get(mode="fill", fill_value=u.capacity)
      moved.append([_take(x, source, u) for x in arrays])
    return new, moved

  return lax.cond(due, move, lambda: (places, moments))


def _take(x: Array, source: Array, units: Units) -> Array:
  """Takes the units with the given indices from an array of live weights."""
  listed = x.reshape(units.capacity, -1)
  return listed.at[source].get(mode="fill", fill_value=0).reshape(units.shape)


def _blocks(x: Array, units: Units) -> Array:
  """Reshapes a leaf to (rows, bi, columns, bo), its grid of blocks."""
  rows, columns = units.grid
  x = jnp.transpose(x, units.axes.order)
  return x.reshape(rows, units.block[0], columns, units.block[1])


def _row_and_column(places: Array, units: Units) -> tuple[Array, Array]:
  columns = jnp.int32(units.grid[1])
  return places // columns, places % columns
