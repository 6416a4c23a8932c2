"""Blocks of a kernel's last two axes."""

import functools

import jax

from sparsejax.core.checks import check_tuple
from sparsejax.core.structures.base import Structure
from sparsejax.core.structures.layout import reshape_keeping
from sparsejax.core.structures.units import check_pooling, of_units

Array = jax.Array


def block(shape: tuple[int, int], score: str = "sum") -> Structure:
  """Blocks over inputs and outputs, live or dead as a whole.

  mask[..., i, o] = live[..., i // bh, o // bw]

  The last two axes are cut into blocks; every spatial tap of a convolution has blocks
  of its own. Budgets are whole blocks, at least one a layer: the total is the wanted
  one to the nearest block. A sharded axis is cut without communication where its
  shards hold whole blocks.

  Args:
    shape: (bh, bw), inputs and outputs of one block; they divide the last two axes.
    score: of a block, from its weights: "sum", "mean" (the same order) or "max".

  Returns:
    A structure.

  Raises:
    TypeError: shape is not a pair of integers.
    ValueError: a side is below 1; score is none of the three; at init: a layer's last
      two axes are not multiples of the block's.

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

  def check(path: str, layer: tuple[int, ...]) -> None:
    if len(layer) < 2 or layer[-2] % height or layer[-1] % width:
      raise ValueError(
        f"structure must fit every layer: {name} needs last two axes that are "
        f"multiples of {shape}, got shape {layer} at {path!r}."
      )

  def view(x: Array, rows: int):
    *lead, inputs, outputs = x.shape
    cut = (*lead, inputs // height, height, outputs // width, width)
    n = len(lead)
    origin = (*range(n), n, None, n + 1, None)
    return reshape_keeping(x, cut, origin), (-3, -1)

  def restore(x: Array, like: Array, rows: int) -> Array:
    n = like.ndim - 2
    return reshape_keeping(x, like.shape, (*range(n), n, n + 2))

  return of_units(name, check, lambda layer: height * width, view, restore, score)
