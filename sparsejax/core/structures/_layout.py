"""Helpers of the structures: reshapes that keep the sharding, and a check of axes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from sparsejax.core._kernel_axes import LayerAxes

Array = jax.Array


def reshape_keeping(
  x: Array, shape: Sequence[int], origin: Sequence[int | None]
) -> Array:
  """Reshapes by splitting and merging axes, with the sharding of the old axes.

  Args:
    x: array.
    shape: the new shape.
    origin: for each new axis, the old axis whose sharding it gets, or None.

  Returns:
    Array of the new shape.
  """
  sharding = getattr(jax.typeof(x), "sharding", None)
  if sharding is None or all(axis is None for axis in sharding.spec):
    return jnp.reshape(x, shape)
  spec = [None if i is None else sharding.spec[i] for i in origin]
  out = NamedSharding(sharding.mesh, PartitionSpec(*spec))
  return jnp.reshape(x, shape, out_sharding=out)


def check_axis(name: str, axis: int, path: str, axes: LayerAxes) -> None:
  """Raises ValueError unless a layer has the axis that a structure names."""
  rank = len(axes.side)
  if not (axes.known and -rank <= axis < rank):
    raise ValueError(
      f"structure must fit every layer: {name} names axis {axis}, got shape "
      f"{axes.layer} at {path!r}."
    )
