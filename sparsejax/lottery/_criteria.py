"""Mask criteria of Zhou et al. (2019)."""

from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.core import (
  Stacked,
  align,
  check_key,
  check_stacked,
  layer_axes,
  leaf_keys,
  ordered_bits,
  put_first,
  uniform_like,
  widened,
)

PyTree = Any

# (w_i, w_f, a w_f) -> score, with a such that |a w_f| and |w_i| have the same mean.
_RULES = {
  "large_final": lambda i, f, s: jnp.abs(f),
  "small_final": lambda i, f, s: -jnp.abs(f),
  "large_init": lambda i, f, s: jnp.abs(i),
  "small_init": lambda i, f, s: -jnp.abs(i),
  "large_init_large_final": lambda i, f, s: jnp.minimum(jnp.abs(i), jnp.abs(s)),
  "small_init_small_final": lambda i, f, s: -jnp.maximum(jnp.abs(i), jnp.abs(s)),
  "magnitude_increase": lambda i, f, s: jnp.abs(f) - jnp.abs(i),
  "movement": lambda i, f, s: jnp.abs(f - i),
}
CRITERIA = (*_RULES, "random")
_SIGNS = {"": 0, "_same_sign": 1, "_diff_sign": -1}


def criterion(
  name: str,
  initial: PyTree,
  final: PyTree,
  masks: PyTree,
  key: jax.Array | None = None,
  *,
  stacked: Stacked = False,
) -> PyTree:
  """Computes the scores of a mask criterion for `prune`, which drops the lowest.

  large_final: |w_f|;  small_final: -|w_f|;  large_init: |w_i|;  small_init: -|w_i|;
  large_init_large_final: min(|w_i|, a |w_f|);  small_init_small_final:
  -max(|w_i|, a |w_f|);  magnitude_increase: |w_f| - |w_i|;  movement: |w_f - w_i|;
  random: uniform.  a = mean |w_i| / mean |w_f| over the layer's live weights.

  With the suffix `_same_sign` (`_diff_sign`), every weight whose sign changed (did not
  change) scores below all other weights. The order within each group is unchanged,
  except that two adjacent floats may be equal under magnitude_increase.

  Args:
    name: a criterion, such as "magnitude_increase" or "large_final_same_sign".
    initial: w_i, the weights that a ticket is rewound to.
    final: w_f, the weights after training.
    masks: bool arrays, True = live; leaves without a mask get no score.
    key: a PRNG key, needed by "random" only.
    stacked: which leaves stack several layers; see `sj.sparsify`. Each of these layers
      has an `a` of its own.

  Returns:
    A tree of float arrays like `masks`; higher scores are kept.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: `name` is not a criterion, `key` is missing for "random", or `stacked`
      selects no leaf with a mask.

  References:
    Zhou et al. 2019, "Deconstructing lottery tickets", figure 3 and section 5. The
    paper chooses `a` by hand; here `a` gives the two magnitudes the same mean.

  Example:
    >>> w_i, w_f = jnp.array([[1.0, -3.0, 2.0]]), jnp.array([[4.0, -2.0, -5.0]])
    >>> live = jnp.ones((1, 3), bool)
    >>> criterion("magnitude_increase", w_i, w_f, live).tolist()
    [[3.0, -1.0, 3.0]]
    >>> bool(criterion("large_final_same_sign", w_i, w_f, live).argmin() == 2)
    True
  """
  if not isinstance(name, str):
    raise TypeError(f"name must be a criterion's, got {name!r}.")
  if key is not None:
    check_key("key", key)
  check_stacked(stacked)
  # Separate a sign suffix from the name of the criterion.
  rule, sign = name, 0
  for suffix, value in _SIGNS.items():
    if suffix and name.endswith(suffix):
      rule, sign = name.removesuffix(suffix), value
  if rule not in CRITERIA:
    raise ValueError(
      f"name must be one of {', '.join(CRITERIA)}, with '_same_sign' or '_diff_sign'"
      f" after it or not; got {name!r}."
    )
  if rule == "random" and key is None:
    raise ValueError("key must be given for the criterion 'random', got None.")
  # Score each layer by itself: the scale `a` is computed from its live weights.
  starts, treedef = jax.tree.flatten(initial)
  ends = treedef.flatten_up_to(final)
  keys = [None] * len(starts) if key is None else leaf_keys(key, initial)
  entries = align(initial, masks)
  axes = iter(layer_axes(initial, [m is not None for m in entries], stacked))

  def score(i, f, m, k):
    if m is None:
      return None
    stack = next(axes).stacked
    if rule == "random":
      worth = uniform_like(k, i).astype(i.dtype)
    else:
      # In float16 the sums would overflow.
      rest = [axis for axis in range(m.ndim) if axis not in stack]
      size = [
        jnp.sum(jnp.where(m, jnp.abs(widened(w)), 0), tuple(rest), keepdims=True)
        for w in (i, f)
      ]
      scale = size[0] / jnp.where(size[1] > 0, size[1], jnp.ones_like(size[1]))
      worth = _RULES[rule](i, f, f * scale.astype(f.dtype))
    if not sign:
      return worth
    agree = jnp.sign(i) * jnp.sign(f) * sign > 0
    # Rank one group first; `put_first` takes scores of one sign.
    if rule.startswith("small"):
      return -put_first(-worth, ~agree)
    if rule == "magnitude_increase":
      worth = _not_negative(worth)
    return put_first(worth, agree)

  return treedef.unflatten(
    score(i, f, m, k) for i, f, m, k in zip(starts, ends, entries, keys, strict=True)
  )


def _not_negative(x: jax.Array) -> jax.Array:
  """Maps floats to floats of at least 0, in order; adjacent ones may become equal."""
  bits = jnp.finfo(x.dtype).bits
  word = {16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}[bits]
  # Twice as many keys as there are floats of at least 0, counted from that of -inf.
  keys = ordered_bits(x) - ordered_bits(jnp.asarray(-jnp.inf, x.dtype))
  value = jax.lax.bitcast_convert_type((keys >> 1).astype(word), x.dtype)
  return jnp.where(jnp.isnan(x), x, value)
