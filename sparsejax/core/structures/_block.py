"""The block structure: blocks of a kernel's inputs and outputs."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax

from sparsejax.core._checks import check_tuple
from sparsejax.core._kernel_axes import LayerAxes
from sparsejax.core.structures._base import Structure
from sparsejax.core.structures._layout import reshape_keeping
from sparsejax.core.structures._units import check_pooling, of_units

Array = jax.Array


def block(shape: tuple[int, int], score: str = "sum") -> Structure:
  """Makes blocks of inputs and outputs live or dead as a whole.

  mask[..., i, o] = live[..., i // bh, o // bw]

  Inputs and outputs are divided into blocks; each spatial tap of a convolution has its
  own blocks. If inputs or outputs have several axes, a block takes a part of the last
  axis, or all of it and a part of the axis before, as in the matrix of the merged axes.
  Budgets are whole blocks, at least one per layer, and the total budget is rounded to
  the nearest block. Blocks of a sharded axis need no communication if each shard has
  whole blocks.

  Args:
    shape: (bh, bw), inputs and outputs of one block, which must divide those of every
      kernel.
    score: how the score of a block is made from those of its weights: "sum", "mean"
      (which ranks the same) or "max".

  Returns:
    A structure.

  Raises:
    TypeError: `shape` is not a pair of integers.
    ValueError: a side is below 1, or `score` is not one of the three. In `init`: the
      inputs and outputs of a layer are not multiples of the block's.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> blocks = sj.block((2, 2))
    >>> tx = sj.static_sparse(optax.sgd(0.1), density=0.25, structure=blocks)
    >>> state = tx.init({"kernel": jnp.ones((4, 4))})
    >>> int(sj.masks(state)["kernel"].sum())
    4
  """
  check_tuple("shape", shape, 2)
  check_pooling(score)
  return _block(tuple(int(n) for n in shape), score)


@functools.cache
def _block(shape: tuple[int, int], score: str) -> Structure:
  """Makes the structure; cached, because structures are compared by identity."""
  height, width = shape
  name = f"block({shape})"

  def cuts(axes: LayerAxes) -> list[tuple[int, int]] | None:
    """Returns (number of blocks, length in a block) for each input and output axis."""
    parts = []
    for side, length in ((axes.inputs, height), (axes.outputs, width)):
      cut = _cut([axes.shape[i] for i in side], length)
      if cut is None:
        return None
      parts += cut
    return parts

  def check(path: str, axes: LayerAxes) -> None:
    if not axes.known or cuts(axes) is None:
      raise ValueError(
        f"structure must fit every layer: {name} needs inputs and outputs that are "
        f"multiples of {shape}, got shape {axes.layer} at {path!r}."
      )

  # Splits each input and output axis into (number of blocks, length in a block). The
  # first part gets the sharding of the axis, unless there is only one block.
  def view(x: Array, axes: LayerAxes):
    parts: Any = cuts(axes)
    n = x.ndim - len(parts)
    cut = (*x.shape[:n], *(length for pair in parts for length in pair))
    origin = [*range(n)]
    for i, (number, _) in enumerate(parts):
      origin += [n + i, None] if number > 1 else [None, n + i]
    return reshape_keeping(x, cut, origin), tuple(range(n + 1, len(cut), 2))

  # Merges each pair of axes again.
  def restore(x: Array, like: Array, axes: LayerAxes) -> Array:
    parts: Any = cuts(axes)
    n = like.ndim - len(parts)
    pairs = enumerate(parts)
    origin = [n + 2 * i + (0 if number > 1 else 1) for i, (number, _) in pairs]
    return reshape_keeping(x, like.shape, (*range(n), *origin))

  units = of_units(name, check, lambda layer: height * width, view, restore, score)
  return dataclasses.replace(units, block=shape)


def _cut(sizes: Sequence[int], length: int) -> list[tuple[int, int]] | None:
  """Divides several axes, taken as one, into blocks, from the last axis to the first.

  Returns (number of blocks, length in a block) per axis, or None if blocks do not fit.
  """
  pairs = []
  for size in reversed(sizes):
    if size % length == 0:
      pairs.append((size // length, length))
      length = 1
    elif length % size == 0:
      pairs.append((1, size))
      length //= size
    else:
      return None
  return pairs[::-1] if length == 1 else None
