"""Exact selection of the k largest scores by counting, without sorting.

The algorithm is a radix search for the k-th largest score:

1. Floats are mapped to unsigned integers of the same order, the keys.
2. The k-th largest key, the threshold, is found byte by byte from the highest byte. One
   pass over the scores extracts the current byte of every key whose higher bytes equal
   those of the threshold. A bisection over the 256 values of the byte, with eight
   counts, finds the largest value that enough keys reach.
3. If more keys equal the threshold than are needed, the same search over the bytes of
   the complemented linear index selects those with the lowest indices.

Only counts are reduced over a whole tensor, so with sharded scores only counts are
communicated between devices.

One loop serves all tensors of a tree. Its state has one entry per layer; only the
passes over the scores are compiled once per tensor.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax.core._budgets import to_vector
from sparsejax.core._reduce import count
from sparsejax.core._stacked import rows_back, rows_first, stacked_axes
from sparsejax.core._tree import path_string

Array = jax.Array
PyTree = Any


def ordered_bits(x: Array, where: Array | None = None) -> Array:
  """Maps floats to unsigned integers of the same order.

  Both zeros map to one value. Subnormals keep their order, even on hardware that
  flushes them to zero. NaN and positions outside `where` map to 0, below -inf.

  Args:
    x: floats of any shape; float64 needs x64 mode.
    where: bool array of x's shape, False at positions that do not take part.

  Returns:
    uint32 array of x's shape (uint64 for float64).
  """
  bits = jnp.finfo(x.dtype).bits
  if bits < 16:  # every float8 is exact in bfloat16
    x, bits = x.astype(jnp.bfloat16), 16
  word = jnp.uint64 if bits == 64 else jnp.uint32
  raw = {16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}[bits]
  b = lax.bitcast_convert_type(x, raw).astype(word)
  inf = lax.bitcast_convert_type(jnp.asarray(jnp.inf, x.dtype), raw).astype(word)
  sign = jnp.asarray(1 << (bits - 1), word)
  magnitude = b & (sign - jnp.asarray(1, word))
  valid = magnitude <= inf  # False for NaN
  if where is not None:
    valid = valid & where
  # Negative floats are ordered by falling magnitude, below the positive ones.
  image = jnp.where(b >= sign, sign - magnitude, sign | magnitude)
  return jnp.where(valid, image, jnp.zeros_like(image))


def put_first(scores: Array, first: Array) -> Array:
  """Lowers the scores outside of a group, so that the whole group ranks first.

  s'_i = s_i in the group;  s'_i < 0, in the order of s, elsewhere

  No two scores that differ are mapped to one value, which a sum with an offset does.

  Args:
    scores: floats of at least 0, of any shape.
    first: bool array of the same shape, True in the group.

  Returns:
    Array like `scores`; NaN stays NaN.

  Example:
    >>> import jax.numpy as jnp
    >>> ranks = put_first(jnp.array([3.0, 1.0, 2.0]), jnp.array([False, True, False]))
    >>> jnp.argsort(ranks).tolist()  # 2, 3, and the group
    [2, 0, 1]
  """
  if jnp.finfo(scores.dtype).bits < 16:
    scores = scores.astype(jnp.bfloat16)
  word = {16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}[jnp.finfo(scores.dtype).bits]
  bits = lambda value: lax.bitcast_convert_type(jnp.asarray(value, scores.dtype), word)
  # The bits of positive floats are in their order: inf - s is the magnitude of s', so
  # that the largest s is the least negative s'.
  lowered = bits(-0.0) | (bits(jnp.inf) - lax.bitcast_convert_type(scores, word))
  lowered = lax.bitcast_convert_type(lowered, scores.dtype)
  return jnp.where(first | jnp.isnan(scores), scores, lowered)


def byte_at(word: Array, decided: Array, shift: Array) -> tuple[Array, Array]:
  """Returns the byte of `word` at `shift`, and whether its higher bytes match.

  They match where they equal those of `decided`.

  Args:
    word: unsigned integers.
    decided: a threshold of which the bytes above `shift` are decided.
    shift: the position of the byte, in bits.
  """
  eight = jnp.asarray(8, word.dtype)
  same = ((word ^ decided) >> shift) >> eight == 0
  return (word >> shift) & jnp.asarray(255, word.dtype), same


class _Search(NamedTuple):
  """The state of the search for all layers, after `level` bytes."""

  level: Array  # int32 (): number of bytes decided so far, of the key and the index
  key: Array  # (layers,): threshold on the keys
  index: Array  # (layers,): threshold on the complemented linear index
  missing: Array  # int32 (layers,): number to select among those that still match
  done: Array  # bool (layers,): whether the threshold already selects exactly k


def top_k_mask(scores: Array, k, where: Array | None = None) -> Array:
  """Selects exactly the k largest scores; of equal scores those of lowest index.

  mask[i] = 1 iff #{j : s_j > s_i, or s_j = s_i and j < i} < k

  It does not sort, flatten, reshape or gather, and takes time linear in the number of
  scores. -inf is selected only if no other candidate is left, and NaN never. Use
  `jax.vmap` to select row by row, each row with its own k.

  Args:
    scores: floats of any shape, fewer than 2^31 of them.
    k: how many to select, an integer, possibly traced. Values below 0 count as 0;
      values above the number of candidates select all of them.
    where: bool array of the shape of `scores`, True at the candidates; None for all.

  Returns:
    bool array with the shape and sharding of `scores`.

  Raises:
    TypeError: `scores` is not floating point, `k` is not an integer, or `where` is not
      bool.
    ValueError: `k` is not a scalar, shapes differ, or there are 2^31 scores or more.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj
    >>> sj.top_k_mask(jnp.array([3.0, 1.0, 3.0, 3.0]), 2)
    Array([ True, False,  True, False], dtype=bool)
  """
  scores, k, where = _check(scores, k, where)
  return select([scores], k[None], [where], [0])[0]


def select(
  scores: Sequence[Array],
  k: Array,
  where: Sequence[Array | None],
  rows: Sequence[int],
) -> list[Array]:
  """Selects the k largest scores in each layer of several tensors at once.

  Args:
    scores: floats of any shapes.
    k: int32 (layers,), at least 0: how many to select in each layer.
    where: bool arrays, True at the candidates; None for all.
    rows: for each tensor, the number of leading axes that stack layers; 0 for a tensor
      that is one layer.

  Returns:
    bool arrays of the shapes of `scores`, selected as by `top_k_mask`.
  """
  # The entries of tensor i in `k` are k[ends[i] - sizes[i] : ends[i]].
  sizes = [math.prod(x.shape[:r]) for x, r in zip(scores, rows, strict=True)]
  ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
  masks: list = [None] * len(scores)
  # One search per float width, because the search runs over the bytes of the keys.
  for bits in sorted({jnp.finfo(x.dtype).bits for x in scores}):
    ids = [i for i, x in enumerate(scores) if jnp.finfo(x.dtype).bits == bits]
    keys = [ordered_bits(scores[i], where[i]) for i in ids]
    part = jnp.concatenate([k[ends[i] - sizes[i] : ends[i]] for i in ids])
    found, _ = search(keys, part, [rows[i] for i in ids], -(-max(bits, 16) // 8))
    for i, mask in zip(ids, found, strict=True):
      masks[i] = mask
  return masks


def search(
  keys: list[Array],
  k: Array,
  rows: list[int],
  key_levels: int,
  start: tuple[Array, Array] | None = None,
) -> tuple[list[Array], Array]:
  """Selects the k largest keys of each layer by a search over bytes.

  The first `key_levels` steps decide the bytes of the threshold on the keys. The other
  steps decide the bytes of the threshold on the complemented index, which selects among
  keys equal to the threshold. A layer is done as soon as its threshold selects exactly
  k elements; the loop ends when all layers are done or all bytes are decided.

  Args:
    keys: results of `ordered_bits`, of one dtype.
    k: int32 (layers,), at least 0.
    rows: see `select`.
    key_levels: number of bytes per key.
    start: optional thresholds, of shape (layers,) and the keys' dtype, and bools
      (layers,). True says that exactly k keys are at or above the layer's threshold, so
      that the layer needs no search.

  Returns:
    bool arrays of the shapes of `keys`, and the thresholds, of the keys' dtype.
  """
  # The index of the longest layer says how many bytes may be needed to break ties.
  word = keys[0].dtype
  longest = max(math.prod(x.shape[r:]) for x, r in zip(keys, rows, strict=True))
  index_levels = -(-max(longest - 1, 1).bit_length() // 8)
  levels = key_levels + index_levels

  def undecided(s: _Search):
    return (s.level < levels) & ~jnp.all(s.done)

  def decide(s: _Search):
    # The position of the next byte, in the key or in the index.
    on_key = s.level < key_levels
    shift = jnp.where(on_key, key_levels, levels) - 1 - s.level
    shift = (shift * 8).astype(word)
    decided = jnp.where(on_key, s.key, s.index)
    # For each tensor, extracts that byte where all higher bytes equal the threshold's.
    # All other elements get 0, so that the counts below ignore them.
    digits = []
    for x, r, threshold, decided_, done in zip(
      keys,
      rows,
      spread(s.key, keys, rows),
      spread(decided, keys, rows),
      _settled(s.done, keys, rows),
      strict=True,
    ):

      def extract(x=x, r=r, threshold=threshold, decided_=decided_):
        # One expression for keys and indices keeps the compiled program small.
        source = jnp.where(on_key, x, _reversed_index(x, r))
        digit, same = byte_at(source, decided_, shift)
        same = same & (on_key | (x == threshold))
        return jnp.where(same, digit, jnp.zeros_like(digit)).astype(jnp.uint8)

      # Skips tensors whose layers are all done. Ties are rare, so the passes over the
      # index bytes usually run for few tensors.
      nothing = functools.partial(jnp.zeros_like, x, jnp.uint8)
      digits.append(lax.cond(done, nothing, extract))
    # The next byte of each layer's threshold is the largest one that at least `missing`
    # elements reach. Elements above it are selected. The search continues among those
    # equal to it, unless exactly as many reach it as are missing.
    d, reached, above = largest_byte(digits, s.missing, rows)
    decided = decided | (d.astype(word) << shift)
    decided = jnp.where(s.done, jnp.where(on_key, s.key, s.index), decided)
    return _Search(
      level=s.level + 1,
      key=jnp.where(on_key, decided, s.key),
      index=jnp.where(on_key, s.index, decided),
      missing=jnp.where(s.done, s.missing, s.missing - above),
      done=s.done | (reached == s.missing),
    )

  every = 2 ** (8 * word.itemsize) - 1
  # The index is complemented, so the high bytes that no index uses are all ones.
  unused = every >> (8 * index_levels) << (8 * index_levels)
  # A layer with k = 0 is done: no key is above the largest word.
  key = jnp.where(k == 0, jnp.asarray(every, word), jnp.zeros((), word))
  done = k == 0
  if start is not None:
    key, done = jnp.where(start[1], start[0], key), done | start[1]
  first = _Search(
    level=jnp.int32(0),
    key=key,
    index=jnp.full(k.shape, unused, word),
    missing=k,
    done=done,
  )
  end = lax.while_loop(undecided, decide, first)
  # Selects keys above the threshold, and equal keys whose complemented index reaches
  # the index threshold. Keys of 0 are NaN or no candidates.
  masks = []
  for x, r, key, index in zip(
    keys, rows, spread(end.key, keys, rows), spread(end.index, keys, rows), strict=True
  ):
    tied = (x == key) & (_reversed_index(x, r) >= index)
    masks.append(((x > key) | tied) & (x > 0))
  return masks, end.key


def spread(values: Array, tensors: Sequence[Array], rows: Sequence[int]) -> list[Array]:
  """Splits a per-layer vector into one array per tensor that broadcasts against it.

  The parts are scalars for tensors that are one layer, and of shape (rows, 1, ...) for
  tensors that stack layers.
  """
  parts, start = [], 0
  for x, r in zip(tensors, rows, strict=True):
    n = math.prod(x.shape[:r])
    part = values[start : start + n].reshape(x.shape[:r])
    parts.append(lax.expand_dims(part, range(r, x.ndim)) if r else part)
    start += n
  return parts


def _settled(done: Array, tensors: Sequence[Array], rows: Sequence[int]) -> list[Array]:
  """Returns, for each tensor, whether all its layers are done."""
  return [jnp.all(flags) for flags in spread(done, tensors, rows)]


def largest_byte(digits: list[Array], missing: Array, rows: list[int]):
  """Finds the largest byte d with count(digits >= d) >= missing, by eight counts.

  Args:
    digits: uint8 arrays; elements that take no part are 0.
    missing: integers (layers,), the counts to reach; or () for all arrays together.
    rows: for each array, the number of leading axes that stack layers.

  Returns:
    d (int32), count(digits >= d) (-1 for d = 0), and count(digits > d), all of the
    shape of `missing`.
  """

  def counts(candidate):
    byte = candidate.astype(jnp.uint8)
    if missing.ndim == 0:
      # Counts of all layers are added in the type of `missing`, which may be int64.
      found = zip(digits, rows, strict=True)
      return sum(jnp.sum(count(x >= byte, r).astype(missing.dtype)) for x, r in found)
    # Counts layers that are done too, which costs less than a branch per layer.
    found = [
      count(x >= b, r).reshape(math.prod(x.shape[:r]))
      for x, b, r in zip(digits, spread(byte, digits, rows), rows, strict=True)
    ]
    return jnp.concatenate(found)

  # Sets the bits of d from the highest one; a bit stays set if enough digits reach d.
  def bit(i, state):
    d, reached, above = state
    candidate = d | (jnp.int32(128) >> i)
    n = counts(candidate)
    enough = n >= missing
    return (
      jnp.where(enough, candidate, d),
      jnp.where(enough, n, reached),
      jnp.where(enough, above, n),
    )

  d = jnp.zeros(missing.shape, jnp.int32)
  start = (d, jnp.full_like(missing, -1), jnp.zeros_like(missing))
  return lax.fori_loop(jnp.int32(0), jnp.int32(8), bit, start)


def _reversed_index(like: Array, rows: int) -> Array:
  """Computes the complemented row-major index of each element within its layer."""
  # With explicit mesh axes, the iota must get the sharding of `like`.
  sharding = getattr(jax.typeof(like), "sharding", None)
  explicit = sharding is not None and any(s is not None for s in sharding.spec)
  index, stride = jnp.zeros_like(like), 1
  for axis in reversed(range(rows, like.ndim)):
    iota = lax.broadcasted_iota(
      like.dtype, like.shape, axis, out_sharding=sharding if explicit else None
    )
    index = index + iota * jnp.asarray(stride, like.dtype)
    stride *= like.shape[axis]
  return ~index


def _check(scores, k, where):
  for name, value in (("scores", scores), ("k", k)):
    if not isinstance(value, (jax.Array, np.ndarray, np.generic, int, float, list)):
      raise TypeError(f"{name} must be an array, got {value!r}.")
  scores = jnp.asarray(scores)
  if not jnp.issubdtype(scores.dtype, jnp.floating):
    raise TypeError(f"scores must be floating point, got {scores.dtype}.")
  if scores.size >= 2**31:
    raise ValueError(
      f"scores must have fewer than 2^31 elements, got {scores.size}; stack the tensor "
      "as rows and select under jax.vmap."
    )
  k = jnp.asarray(k)
  if not jnp.issubdtype(k.dtype, jnp.integer):
    raise TypeError(f"k must be an integer, got {k.dtype}.")
  if k.ndim:
    raise ValueError(f"k must be a scalar, got shape {k.shape}; use jax.vmap for rows.")
  # Clips before the cast to int32, since a 64-bit k of 2^32 would wrap to 0.
  k = jnp.clip(k, 0, min(scores.size, jnp.iinfo(k.dtype).max)).astype(jnp.int32)
  if where is not None:
    where = jnp.asarray(where)
    if where.dtype != bool:
      raise TypeError(f"where must be bool, got {where.dtype}.")
    if where.shape != scores.shape:
      raise ValueError(
        f"where must have the shape of scores {scores.shape}, got {where.shape}."
      )
  return scores, k, where


def top_k_masks(scores: PyTree, counts: PyTree, where: PyTree) -> PyTree:
  """Selects the k largest scores in each layer of a tree, as `top_k_mask` does.

  Args:
    scores: tree of floats.
    counts: tree of int32: a scalar per leaf, or one number per layer where the leaf
      stacks layers, such as (rows,) along its leading axis; see `core/_stacked.py`.
      Values below 0 count as 0.
    where: tree of bool arrays, True at the candidates.

  Returns:
    tree of bool arrays.
  """
  leaves, treedef = jax.tree.flatten(scores)
  budgets = jax.tree.leaves(counts)
  rows = [len(stacked_axes(b)) for b in budgets]
  k = jnp.maximum(to_vector(counts), 0)
  keys = [rows_first(x, b) for x, b in zip(leaves, budgets, strict=True)]
  candidates = zip(jax.tree.leaves(where), budgets, strict=True)
  masks = select(keys, k, [rows_first(w, b) for w, b in candidates], rows)
  back = [rows_back(m, b) for m, b in zip(masks, budgets, strict=True)]
  return treedef.unflatten(back)


def scores_are_finite(scores: PyTree, where: PyTree) -> Array:
  """Returns whether no candidate's score is NaN or +inf; -inf is allowed.

  Args:
    scores: tree of floats.
    where: tree of bool arrays, True at the candidates.

  Returns:
    bool scalar.

  Raises:
    ValueError: see `check_scores`.
  """
  check_scores(scores, where)
  return _are_finite(jax.tree.leaves(scores), jax.tree.leaves(where))


@functools.partial(jax.jit, inline=True)
def _are_finite(scores: list[Array], where: list[Array]) -> Array:
  rows = zip(scores, where, strict=True)
  bad = [count(w & ~(s < jnp.inf)) for s, w in rows]  # NaN compares False
  return jnp.all(jnp.stack(bad) == 0)


def check_scores(scores: PyTree, where: PyTree, name: str = "score") -> None:
  """Raises ValueError unless scores, possibly the user's, have a float per weight.

  Args:
    scores: the result of a score.
    where: tree of bool arrays, one per kernel.
    name: the name of the score in the error message.

  Example:
    >>> check_scores({"a": jnp.ones(2)}, {"a": jnp.ones(3, bool)})
    Traceback (most recent call last):
      ...
    ValueError: score must return a float per weight, float[3] at 'a'; got float32[2].
  """
  found, expected = jax.tree.structure(scores), jax.tree.structure(where)
  if found != expected:
    raise ValueError(
      f"{name} must return a tree like the sparsified leaves, {expected}; got {found}."
    )
  for (path, mask), score in zip(
    jax.tree_util.tree_leaves_with_path(where), jax.tree.leaves(scores), strict=True
  ):
    shape, dtype = jnp.shape(score), jnp.result_type(score)
    if shape != mask.shape or not jnp.issubdtype(dtype, jnp.floating):
      raise ValueError(
        f"{name} must return a float per weight, float{list(mask.shape)} at "
        f"{path_string(path)!r}; got {dtype}{list(shape)}."
      )
