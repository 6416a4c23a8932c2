"""The channel structure: whole channels of a kernel."""

import functools
import math

import jax

from sparsejax.core._checks import check_integer
from sparsejax.core._kernel_axes import LayerAxes
from sparsejax.core.structures._base import Structure
from sparsejax.core.structures._layout import check_axis
from sparsejax.core.structures._units import check_pooling, of_units

Array = jax.Array


def channel(axis: int = -1, score: str = "sum") -> Structure:
  """Makes channels (filters, output neurons, input channels) live or dead as a whole.

  mask[..., c, ...] = live[c]

  Budgets are whole channels, at least one per layer. The budget of each layer is
  rounded to the nearest channel; if the channels of all layers have one size, the total
  budget is rounded.

  A channel of attention's query kernel is one feature of one head. To remove whole
  heads, declare the features within a head as taps:
  `input_axes={"query": sj.KernelAxes(0, 1)}`.

  Args:
    axis: an axis of a layer's kernel as (taps, inputs, outputs): -1 for outputs
      (neurons, filters), -2 for inputs.
    score: how the score of a channel is made from those of its weights: "sum", "mean"
      (which ranks the same) or "max".

  Returns:
    A structure.

  Raises:
    TypeError: `axis` is not an integer.
    ValueError: `score` is not one of the three. In `init`: a layer has no such axis.

  References:
    Li et al. 2017, "Pruning filters for efficient ConvNets", section 3.1: the sum of
    a filter's magnitudes.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.static_sparse(optax.sgd(0.1), 0.5, structure=sj.channel(-1))
    >>> state = tx.init({"kernel": jnp.ones((3, 3, 4, 8))})
    >>> int(sj.masks(state)["kernel"].any((0, 1, 2)).sum())
    4
  """
  check_integer("axis", axis)
  check_pooling(score)
  return _channel(axis, score)


@functools.cache
def _channel(axis: int, score: str) -> Structure:
  """Makes the structure; cached, because structures are compared by identity."""
  name = f"channel({axis})"

  def unit(layer: tuple[int, ...]) -> int:
    return math.prod(layer) // layer[axis]

  # The weights of a channel are along all axes but the stacked ones and its own.
  def view(x: Array, axes: LayerAxes):
    kept = (*axes.stacked, *axes.side[axis])
    return x, tuple(i for i in range(x.ndim) if i not in kept)

  return of_units(
    name,
    functools.partial(check_axis, name, axis),
    unit,
    view,
    lambda x, like, axes: x,
    score,
  )
