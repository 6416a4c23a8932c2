"""The transposable N:M structure: a kernel and its transpose are both N:M."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core._budgets import live_in
from sparsejax.core._kernel_axes import LayerAxes
from sparsejax.core._selection import top_k_masks
from sparsejax.core.structures._base import Structure, in_matrix_order
from sparsejax.core.structures._layout import reshape_keeping
from sparsejax.core.structures._n_m import check_counts

Array = jax.Array
PyTree = Any
_STEPS = 2.0**20  # of a score, relative to the largest in its block


def transposable_n_m(n: int, m: int) -> Structure:
  """Keeps n live weights in every row and every column of each m x m block.

  density = n / m; mask of a block = argmax over patterns p of sum_ij p_ij s_ij

  Blocks take m adjacent inputs and m adjacent outputs; each tap of a convolution has
  blocks of its own. So products with the kernel, in the forward pass, and with its
  transpose, in the backward pass, can both use N:M hardware. The best pattern of each
  block is found by comparing all of them: 90 for 2:4. Scores count in steps of 2^-20 of
  the largest in their block. The comparison takes 90 / 16 floats of temporary memory
  per weight, at mask updates only.

  Dropping compares the weights of a whole layer. Growing completes what is left of a
  block to the best pattern that contains it; after a single weight was dropped this is
  the old pattern, so a mask moves only where a block loses two weights or more: use a
  larger `drop_fraction` than otherwise. While a schedule decreases the density from
  dense, every block contains a pattern, and the other weights are the best of the
  layer.

  Every layer has the density n / m. Budget cannot be moved between layers
  (`redistribute` is refused), and the distribution is `uniform`. Blocks of a sharded
  axis need no communication if each shard has whole blocks.

  Args:
    n: number of live weights per row and column of a block.
    m: rows and columns of a block, 2 to 4; it must divide the inputs and the outputs of
      every layer (the last axis of each, if they have several).

  Returns:
    A structure with the density n / m.

  Raises:
    TypeError: `n` or `m` is not an integer.
    ValueError: not 1 <= n < m <= 4. In `init`: m does not divide the inputs or the
      outputs of a layer, or they are not known.

  References:
    Hubara et al. 2021, "Accelerated sparse neural training: a provable and efficient
    method to find N:M transposable masks" (there by a minimum-cost flow, or greedily in
    linear time; the patterns of 2:4 are few enough to compare; its N counts zeros).

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> structure = sj.transposable_n_m(2, 4)
    >>> tx = sj.rigl(optax.sgd(0.1), density=0.5, structure=structure)
    >>> mask = sj.masks(tx.init({"kernel": jnp.ones((4, 4))}))["kernel"]
    >>> print(mask.sum(0), mask.sum(1))
    [2 2 2 2] [2 2 2 2]
  """
  check_counts(n, m)
  if m > 4:
    raise ValueError(f"m must be at most 4, for all patterns are compared; got {m}.")
  return _transposable(n, m)


@functools.cache
def _transposable(n: int, m: int) -> Structure:
  """Makes the structure; cached, because structures are compared by identity."""
  name = f"transposable_n_m({n}, {m})"
  # A pattern is a choice of n columns for each row that uses every column n times.
  columns = list(itertools.combinations(range(m), n))
  patterns = [
    rows
    for rows in itertools.product(range(len(columns)), repeat=m)
    if np.all(np.bincount([c for r in rows for c in columns[r]], minlength=m) == n)
  ]
  table = np.zeros((len(patterns), m, m), np.float32)
  for number, rows in enumerate(patterns):
    for i, r in enumerate(rows):
      table[number, i, columns[r]] = 1

  def check(path: str, axes: LayerAxes) -> None:
    if not axes.known or any(axes.shape[side[-1]] % m for side in axes.side[-2:]):
      raise ValueError(
        f"structure must fit every layer: {name} needs inputs and outputs that are "
        f"multiples of {m}, got shape {axes.layer} at {path!r}."
      )

  # Budgets above n / m are kept, for schedules that start from dense.
  def fit(shapes: dict[str, tuple[int, ...]], budgets: Array) -> Array:
    sizes = [functools.reduce(int.__mul__, shape) for shape in shapes.values()]
    least = jnp.asarray([size // m * n for size in sizes], jnp.int32)
    budgets = jnp.asarray(budgets).astype(jnp.int32)
    return jnp.clip(budgets, least, jnp.asarray(sizes, jnp.int32))

  def blocks(x: Array, axes: LayerAxes) -> Array:
    """Splits the last input and output axis; the rows and columns become the last."""
    i, o = (side[-1] for side in axes.side[-2:])
    cut, origin = [], []
    for axis, length in enumerate(x.shape):
      split = axis in (i, o)
      cut += [length // m, m] if split else [length]
      origin += [axis, None] if split else [axis]
    # Outputs come after all inputs, so their axes have moved by one more.
    return jnp.moveaxis(reshape_keeping(x, cut, origin), (i + 1, o + 2), (-2, -1))

  def unblocked(x: Array, like: Array, axes: LayerAxes) -> Array:
    i, o = (side[-1] for side in axes.side[-2:])
    x = jnp.moveaxis(x, (-2, -1), (i + 1, o + 2))
    origin = [a + (a > i) + (a > o) for a in range(like.ndim)]
    return reshape_keeping(x, like.shape, origin)

  def totals(x: Array) -> Array:
    """Sums each block of integers below 2^20 over each pattern: exact in float32."""
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("...ij,pij->...p", x, jnp.asarray(table), precision=highest)

  def best(score: Array, candidate: Array, kept: Array, layer: LayerAxes) -> Array:
    """Returns each block's pattern with most kept weights, candidates, and score."""
    usable = candidate & (score > -jnp.inf)  # False for NaN
    wide = jnp.where(usable, score, jnp.zeros_like(score)).astype(jnp.float32)
    wide = blocks(wide, layer)
    # In integers, for a float sum may depend on the shape of the product, and so on the
    # sharding.
    top = jnp.max(jnp.abs(wide), axis=(-2, -1), keepdims=True)
    wide = jnp.round(wide / jnp.where(top > 0, top, 1.0) * _STEPS)
    wide = totals(wide)
    rank = usable.astype(jnp.float32) + (n * m + 1) * kept.astype(jnp.float32)
    rank = totals(blocks(rank, layer))
    first = rank == jnp.max(rank, axis=-1, keepdims=True)
    number = jnp.argmax(jnp.where(first, wide, -jnp.inf), axis=-1)
    # A product with 0 and 1 in place of a gather keeps the blocks on their devices.
    one_hot = jax.nn.one_hot(number, len(patterns), dtype=jnp.float32)
    chosen = jnp.einsum("...p,pij->...ij", one_hot, jnp.asarray(table)) > 0
    return unblocked(chosen, score, layer)

  def fill_up(scores, budgets, where, masks):
    """Adds the best candidates of each layer until its budget is reached."""
    left = jax.tree.map(lambda b, mask: b - live_in(mask, b), budgets, masks)
    free = jax.tree.map(lambda w, mask: w & ~mask, where, masks)
    return jax.tree.map(jnp.logical_or, masks, top_k_masks(scores, left, free))

  @in_matrix_order
  def select(scores: PyTree, counts: PyTree, where: PyTree, axes: Any) -> PyTree:
    def pick(score, candidate, layer):
      return best(score, candidate, jnp.zeros_like(candidate), layer) & candidate

    return fill_up(scores, counts, where, jax.tree.map(pick, scores, where, axes))

  # May leave any part of a pattern; `fill` completes it.
  def keep(scores: PyTree, counts: PyTree, masks: PyTree, axes: Any = None) -> PyTree:
    return top_k_masks(scores, counts, masks)

  @in_matrix_order
  def fill(scores: PyTree, budgets: PyTree, masks: PyTree, before: PyTree, axes: Any):
    # The weights that are left are part of the old pattern of their block, if not more
    # than that: the pattern with most of them needs no more weights than the old one.
    def complete(score, mask, layer):
      return mask | best(score, jnp.ones_like(mask), mask, layer)

    completed = jax.tree.map(complete, scores, masks, axes)
    everything = jax.tree.map(jnp.ones_like, masks)
    return fill_up(scores, budgets, everything, completed), budgets

  return Structure(
    name=name,
    check=check,
    unit=None,
    fit=fit,
    select=select,
    keep=keep,
    fill=fill,
    density=n / m,
    group=(n, m),
  )
