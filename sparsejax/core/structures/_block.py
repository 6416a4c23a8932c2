"""Blocks of a kernel's inputs and outputs."""

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
  """Blocks over inputs and outputs, live or dead as a whole.

  mask[..., i, o] = live[..., i // bh, o // bw]

  Inputs and outputs are cut into blocks; every spatial tap of a convolution has blocks
  of its own. Of inputs or outputs that have several axes a block takes a part of the
  last one, or all of it and a part of the one before, as it would of the matrix.
  Budgets are whole blocks, at least one a layer: the total is the wanted one to the
  nearest block. A sharded axis is cut without communication where its shards hold whole
  blocks.

  Args:
    shape: (bh, bw), inputs and outputs of one block; they divide a kernel's.
    score: of a block, from its weights: "sum", "mean" (the same order) or "max".

  Returns:
    A structure.

  Raises:
    TypeError: shape is not a pair of integers.
    ValueError: a side is below 1; score is none of the three; at init: a layer's
      inputs and outputs are not multiples of the block's.

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
  height, width = shape
  name = f"block({shape})"

  def cuts(axes: LayerAxes) -> list[tuple[int, int]] | None:
    """(number of blocks, length in a block) of each axis of inputs and outputs."""
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

  def view(x: Array, axes: LayerAxes):
    parts: Any = cuts(axes)
    n = x.ndim - len(parts)
    cut = (*x.shape[:n], *(length for pair in parts for length in pair))
    origin = [*range(n)]
    for i, (number, _) in enumerate(parts):
      origin += [n + i, None] if number > 1 else [None, n + i]
    return reshape_keeping(x, cut, origin), tuple(range(n + 1, len(cut), 2))

  def restore(x: Array, like: Array, axes: LayerAxes) -> Array:
    parts: Any = cuts(axes)
    n = like.ndim - len(parts)
    pairs = enumerate(parts)
    origin = [n + 2 * i + (0 if number > 1 else 1) for i, (number, _) in pairs]
    return reshape_keeping(x, like.shape, (*range(n), *origin))

  return of_units(name, check, lambda layer: height * width, view, restore, score)


def _cut(sizes: Sequence[int], length: int) -> list[tuple[int, int]] | None:
  """Cuts blocks of a length off axes taken as one, the last first; None if uneven."""
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
