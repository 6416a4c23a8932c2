"""Selection of the k largest scores over all layers of a network together."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.core._reduce import count
from sparsejax.core._selection import byte_at, largest_byte, ordered_bits
from sparsejax.core._stacked import rows_first, stacked_axes
from sparsejax.core._tree import check_arrays, check_masks

Array = jax.Array
PyTree = Any


def split_k(scores: Sequence[Array], k, where: Sequence[Array]) -> Array:
  """Counts how many of the k largest scores of several tensors are in each tensor.

  k_l = #{i in layer l : s_i among the k largest of all layers}

  Ties at the threshold go to the first layers. Counts are 64-bit integers, so the
  tensors together may have more than 2^31 scores.

  Args:
    scores: float arrays of any shapes and one dtype.
    k: the total number, an integer, possibly traced.
    where: bool arrays of the shapes of `scores`, True at the candidates.

  Returns:
    int32 array (layers,): the counts. They sum to k, clipped to [0, candidates].

  Raises:
    TypeError: the scores are not floats of one dtype, `k` is not an integer, or `where`
      is not bool.
    ValueError: `where` has another number of arrays than `scores`, or other shapes.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj
    >>> scores = [jnp.array([5.0, 1.0]), jnp.array([4.0, 3.0, 2.0])]
    >>> sj.split_k(scores, 3, [s > 0 for s in scores])
    Array([1, 2], dtype=int32)
  """
  check_arrays("scores", scores)
  check_masks(where, "where")
  scores, where = jax.tree.leaves(scores), jax.tree.leaves(where)
  shapes = [x.shape for x in scores], [x.shape for x in where]
  if shapes[0] != shapes[1]:
    raise ValueError(f"where must have scores' shapes {shapes[0]}, got {shapes[1]}.")
  if not jnp.issubdtype(jnp.result_type(k), jnp.integer):
    raise TypeError(f"k must be an integer, got {jnp.result_type(k)}.")
  return _split(scores, k, where, [0] * len(scores))


def split_layers(scores: PyTree, k, where: PyTree, budgets: PyTree) -> Array:
  """Counts how many of the k largest scores of a tree are in each layer.

  Like `split_k`, but each row of a leaf that stacks layers is a layer of its own. Such
  leaves are not split into rows, which may be on several devices.

  Args:
    scores: tree of floating-point arrays of one dtype.
    k: the total number, an integer, possibly traced.
    where: tree of bool arrays, True at the candidates.
    budgets: tree of int32, whose shapes say which axes stack layers; see
      `core/_stacked.py`.

  Returns:
    int32 array (layers,), in the order of `to_vector`.

  Raises:
    TypeError: the scores are not floats of one dtype.
  """
  like = jax.tree.leaves(budgets)
  rows = [len(stacked_axes(b)) for b in like]
  scores = [
    rows_first(x, b) for x, b in zip(jax.tree.leaves(scores), like, strict=True)
  ]
  where = [rows_first(w, b) for w, b in zip(jax.tree.leaves(where), like, strict=True)]
  return _split(scores, k, where, rows)


def _split(scores, k, where, rows) -> Array:
  """Finds one threshold for all tensors, and counts the selected scores per layer."""
  dtypes = {x.dtype for x in scores}
  if len(dtypes) != 1:
    raise TypeError(
      f"scores must share one dtype to be compared, got {sorted(map(str, dtypes))}."
    )
  if not jnp.issubdtype(scores[0].dtype, jnp.floating):
    raise TypeError(f"scores must be floating point, got {scores[0].dtype}.")
  keys = [ordered_bits(s, w) for s, w in zip(scores, where, strict=True)]
  word = keys[0].dtype
  levels = -(-max(jnp.finfo(scores[0].dtype).bits, 16) // 8)
  with jax.enable_x64(True):
    zero = jnp.int64(0)

    def totals(masks):
      found = [jnp.ravel(count(m, r)) for m, r in zip(masks, rows, strict=True)]
      return jnp.concatenate(found).astype(jnp.int64)

    # Keys of 0 are NaN or no candidates, which are never selected.
    candidates = jnp.sum(totals([x > 0 for x in keys]))
    k = jnp.clip(jnp.asarray(k).astype(jnp.int64), zero, candidates)

    # Decides one byte of the common threshold, as `_selection.search` does per layer:
    # the largest byte that at least `missing` of the matching keys reach.
    def decide(level, carry):
      threshold, missing = carry
      shift = ((jnp.int32(levels - 1) - level) * jnp.int32(8)).astype(word)
      digits = []
      for x in keys:
        digit, same = byte_at(x, threshold, shift)
        digit = jnp.where(same, digit, jnp.zeros_like(digit))
        digits.append(digit.astype(jnp.uint8))
      d, _, above = largest_byte(digits, missing, rows)
      return threshold | (d.astype(word) << shift), missing - above

    start = (jnp.zeros((), word), k)
    threshold, missing = lax.fori_loop(jnp.int32(0), jnp.int32(levels), decide, start)
    # Each layer gets its keys above the threshold. The `missing` keys equal to it are
    # taken from the first layers that have such keys.
    above = totals([x > threshold for x in keys])
    equal = totals([(x == threshold) & (x > 0) for x in keys])
    before = jnp.cumsum(equal) - equal
    taken = above + jnp.clip(missing - before, jnp.zeros_like(equal), equal)
    return jnp.where(k == 0, zero, taken).astype(jnp.int32)
