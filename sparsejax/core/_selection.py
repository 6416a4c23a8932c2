"""Exact selection of the k largest scores by counting, never by sorting.

The floats are mapped to unsigned integers of the same order. The k-th largest is
then found byte by byte: a pass extracts the byte that is being decided into an
array of bytes, and a bisection over its 256 values counts, eight times, how many
elements reach a candidate. Equal scores are decided by the same search over the
bytes of the (complemented) linear index. Only the counts are reduced over a whole
tensor, so under sharding only counts move between devices.

One loop serves all tensors of a tree: its state is a vector with an entry a layer,
and only the passes over the tensors are compiled a tensor.
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

  Both zeros map to one value, subnormals keep their order (whatever the hardware
  flushes), and NaN and positions outside `where` map to 0, below -inf.

  Args:
    x: floats of any shape; float64 under x64.
    where: bool array of x's shape; False marks positions that do not take part.

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
  valid = magnitude <= inf
  if where is not None:
    valid = valid & where
  image = jnp.where(b >= sign, sign - magnitude, sign | magnitude)
  return jnp.where(valid, image, jnp.zeros_like(image))


def byte_at(word: Array, decided: Array, shift: Array) -> tuple[Array, Array]:
  """The byte of `word` at `shift`, and whether all higher bytes equal `decided`'s."""
  eight = jnp.asarray(8, word.dtype)
  same = ((word ^ decided) >> shift) >> eight == 0
  return (word >> shift) & jnp.asarray(255, word.dtype), same


class _Search(NamedTuple):
  """What is decided after `level` bytes, for every layer."""

  level: Array  # int32 (): bytes decided so far
  key: Array  # (layers,): threshold on the ordered image of the scores
  index: Array  # (layers,): threshold on the complemented linear index
  missing: Array  # int32 (layers,): how many to take among those that still match
  done: Array  # bool (layers,): the threshold already selects exactly k


def top_k_mask(scores: Array, k, where: Array | None = None) -> Array:
  """Marks the k largest scores: exactly k, whatever the ties.

  mask[i] = 1 iff #{j : s_j > s_i, or s_j = s_i and j < i} < k

  Never sorts, flattens, reshapes or gathers; linear in the number of scores. -inf
  ranks last and is taken only when nothing else is left; NaN is never taken. Use
  `jax.vmap` to select row by row, each row with its own k.

  Args:
    scores: floats of any shape, fewer than 2^31 of them.
    k: how many to mark, an integer, possibly traced; below 0 counts as 0, and
      above the number of candidates as all of them.
    where: bool array of the shape of `scores`: the candidates. All, if None.

  Returns:
    bool array of the shape (and sharding) of `scores`.

  Raises:
    TypeError: `scores` is not floating point, `k` not an integer, `where` not bool.
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
  """`top_k_mask` in every layer of several tensors at once.

  Args:
    scores: floats of any shapes.
    k: int32 (layers,), at least 0: how many to mark in each layer.
    where: bool arrays, the candidates; None for all.
    rows: how many leading axes of each tensor stack layers, 0 for one that is a layer.

  Returns:
    bool arrays of the shapes of `scores`.
  """
  sizes = [math.prod(x.shape[:r]) for x, r in zip(scores, rows, strict=True)]
  ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
  masks: list = [None] * len(scores)
  # One search a float format: they differ in their number of bytes.
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
  """The masks of the k largest keys, byte by byte.

  Args:
    keys: of `ordered_bits`.
    k: int32 (layers,), at least 0.
    rows: see `select`.
    key_levels: bytes of a key.
    start: thresholds of layers, and whether exactly k keys lie at or above them, so
      that nothing is left to search.

  Returns:
    bool arrays of the shapes of `keys`, and the thresholds, of the keys' dtype.
  """
  word = keys[0].dtype
  longest = max(math.prod(x.shape[r:]) for x, r in zip(keys, rows, strict=True))
  index_levels = -(-max(longest - 1, 1).bit_length() // 8)
  levels = key_levels + index_levels

  def undecided(s: _Search):
    return (s.level < levels) & ~jnp.all(s.done)

  def decide(s: _Search):
    on_key = s.level < key_levels
    shift = jnp.where(on_key, key_levels, levels) - 1 - s.level
    shift = (shift * 8).astype(word)
    decided = jnp.where(on_key, s.key, s.index)
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
        # One pass for both phases keeps the program small.
        source = jnp.where(on_key, x, _reversed_index(x, r))
        digit, same = byte_at(source, decided_, shift)
        same = same & (on_key | (x == threshold))
        return jnp.where(same, digit, jnp.zeros_like(digit)).astype(jnp.uint8)

      # Ties are rare: only the tensors that have them pay for the index bytes.
      nothing = functools.partial(jnp.zeros_like, x, jnp.uint8)
      digits.append(lax.cond(done, nothing, extract))
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
  # The index bytes that no layer is long enough to use are all ones.
  unused = every >> (8 * index_levels) << (8 * index_levels)
  # Nothing is asked for: no element lies above the largest word.
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
  masks = []
  for x, r, key, index in zip(
    keys, rows, spread(end.key, keys, rows), spread(end.index, keys, rows), strict=True
  ):
    tied = (x == key) & (_reversed_index(x, r) >= index)
    masks.append(((x > key) | tied) & (x > 0))
  return masks, end.key


def spread(values: Array, tensors: Sequence[Array], rows: Sequence[int]) -> list[Array]:
  """Cuts (layers,) into scalars and, for stacked tensors, columns (rows, 1, ...)."""
  parts, start = [], 0
  for x, r in zip(tensors, rows, strict=True):
    n = math.prod(x.shape[:r])
    part = values[start : start + n].reshape(x.shape[:r])
    parts.append(lax.expand_dims(part, range(r, x.ndim)) if r else part)
    start += n
  return parts


def _settled(done: Array, tensors: Sequence[Array], rows: Sequence[int]) -> list[Array]:
  """Whether all layers of each tensor are done."""
  return [jnp.all(flags) for flags in spread(done, tensors, rows)]


def largest_byte(digits: list[Array], missing: Array, rows: list[int]):
  """The largest byte d with count(digits >= d) >= missing, by eight counts.

  Args:
    digits: uint8 arrays; elements that take no part are 0.
    missing: integers (layers,), the counts to reach; or () for all arrays together.
    rows: how many leading axes of each array stack layers.

  Returns:
    d (int32), count(digits >= d) (-1 for d = 0), count(digits > d); of missing's
    shape.
  """

  def counts(candidate):
    byte = candidate.astype(jnp.uint8)
    if missing.ndim == 0:
      # The layers of one selection are summed in the wider type.
      found = zip(digits, rows, strict=True)
      return sum(jnp.sum(count(x >= byte, r).astype(missing.dtype)) for x, r in found)
    # Layers that are done are counted too: a branch a layer costs more than that.
    found = [
      count(x >= b, r).reshape(math.prod(x.shape[:r]))
      for x, b, r in zip(digits, spread(byte, digits, rows), rows, strict=True)
    ]
    return jnp.concatenate(found)

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
  """The complemented row-major index of each element in its layer."""
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
  # Clip before narrowing: a 64-bit k of 2^32 must not wrap to 0.
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
  """`top_k_mask` in every layer of a tree.

  Args:
    scores: tree of floats.
    counts: tree of int32: a scalar per leaf, or one number per layer where the leaf
      stacks layers, (rows,) along its leading axis; see `core.stacked`.
    where: tree of bool arrays, the candidates.

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
  """Whether no candidate's score is NaN or +inf; -inf is a legal "never".

  Args:
    scores: tree of floats.
    where: tree of bool arrays, the candidates.

  Returns:
    bool scalar.

  Raises:
    ValueError: see `check_scores`.
  """
  check_scores(scores, where)
  bad = jax.tree.map(
    lambda s, w: count(w & ~(s < jnp.inf)),  # NaN compares False
    scores,
    where,
  )
  return jnp.all(jnp.stack(jax.tree.leaves(bad)) == 0)


def check_scores(scores: PyTree, where: PyTree, name: str = "score") -> None:
  """Raises ValueError unless scores, which may be a user's, are a float per weight.

  Args:
    scores: what a score gave.
    where: tree of bool arrays, one per kernel.
    name: the argument's name.

  Example:
    >>> check_scores({"a": jnp.ones(2)}, {"a": jnp.ones(3, bool)})
    Traceback (most recent call last):
      ...
    ValueError: score must give a float per weight, float[3] at 'a'; got float32[2].
  """
  found, expected = jax.tree.structure(scores), jax.tree.structure(where)
  if found != expected:
    raise ValueError(
      f"{name} must give a tree like the sparsified leaves, {expected}; got {found}."
    )
  for (path, mask), score in zip(
    jax.tree_util.tree_leaves_with_path(where), jax.tree.leaves(scores), strict=True
  ):
    shape, dtype = jnp.shape(score), jnp.result_type(score)
    if shape != mask.shape or not jnp.issubdtype(dtype, jnp.floating):
      raise ValueError(
        f"{name} must give a float per weight, float{list(mask.shape)} at "
        f"{path_string(path)!r}; got {dtype}{list(shape)}."
      )
