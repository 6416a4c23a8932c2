"""Rewinding, and what else the live weights of a mask may start from."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.core import (
  align,
  apportion,
  check_callable,
  check_key,
  count,
  leaf_keys,
  masked_copy,
  top_k_masks,
  uniform_like,
)
from sparsejax.second_order import keep_best
from sparsejax.transforms import shuffle_masks

PyTree = Any
MASK_ONE = ("rewind", "reinit", "reshuffle", "constant")
MASK_ZERO = ("zero", "init", "init_if_moved_away")


def rewind(params: PyTree, masks: PyTree) -> PyTree:
  """A ticket: the weights of an earlier step, zero where the mask says so.

  w' = m * w_k

  Args:
    params: of step k; of step 0 for a lottery ticket in the first sense.
    masks: what `prune` gave for the trained weights.

  Returns:
    A tree like `params`, with arrays of its own: a training that donates them leaves
    `params` for the next ticket.

  Raises:
    ValueError: structures or shapes differ.

  References:
    Frankle and Carbin 2019, section 1 (k = 0). Frankle et al. 2020, "Linear mode
    connectivity and the lottery ticket hypothesis", section 4 (k > 0).

  Example:
    >>> rewind({"kernel": jnp.ones((1, 2))}, {"kernel": jnp.array([[True, False]])})
    {'kernel': Array([[1., 0.]], dtype=float32)}
  """
  return masked_copy(params, masks)


def mask_one(
  action: str,
  params: PyTree,
  masks: PyTree,
  key: jax.Array,
  *,
  fresh: Callable[[jax.Array], PyTree] | None = None,
  keep_signs: bool = False,
) -> PyTree:
  """What the live weights start from, to tell what in their rewound values matters.

  rewind: w;  reinit: w' of another draw;  reshuffle: the live weights of the layer in
  another order;  constant: their standard deviation, at a random sign.
  With `keep_signs`, sign(w) |w'|.

  Args:
    action: one of those four.
    params: w, of the step that is rewound to.
    masks: of the ticket; leaves without one are rewound, or drawn anew by "reinit".
    key: a PRNG key.
    fresh: `(key) -> tree like params`, draws a network; needed by "reinit".
    keep_signs: whether new weights take the signs of the old ones.

  Returns:
    A tree like `params`, zero where the masks say so.

  Raises:
    ValueError: there is no such action; "reinit" without `fresh`.

  References:
    Zhou et al. 2019, "Deconstructing lottery tickets", section 4. "reinit" is also
    Frankle and Carbin's control of random reinitialization.

  Example:
    >>> params = {"kernel": jnp.array([[3.0, -4.0, 9.0]])}
    >>> masks = {"kernel": jnp.array([[True, True, False]])}
    >>> new = mask_one("constant", params, masks, jax.random.key(0), keep_signs=True)
    >>> new["kernel"].tolist()
    [[3.5, -3.5, 0.0]]
  """
  if action not in MASK_ONE:
    raise ValueError(f"action must be one of {', '.join(MASK_ONE)}, got {action!r}.")
  check_key("key", key)
  if fresh is not None:
    check_callable("fresh", fresh, "a function of a key", 1)
  if action == "rewind":
    return rewind(params, masks)
  leaves, treedef = jax.tree.flatten(params)
  entries = align(params, masks)
  if action == "reinit":
    if fresh is None:
      raise ValueError("fresh must be given for the action 'reinit', got None.")
    new = treedef.flatten_up_to(fresh(key))
  else:
    draw = _reshuffled if action == "reshuffle" else _constant
    new = [
      w if m is None else draw(k, w, m)
      for k, w, m in zip(leaf_keys(key, params), leaves, entries, strict=True)
    ]
  if keep_signs:
    new = [
      w if m is None else jnp.sign(old) * jnp.abs(w)
      for w, old, m in zip(new, leaves, entries, strict=True)
    ]
  return masked_copy(treedef.unflatten(new), masks)


def _reshuffled(key, weights, mask):
  # The live weights in order of place, handed out in another random order.
  flat, live = weights.reshape(-1), mask.reshape(-1)
  places = jnp.argsort(~live, stable=True)
  noise = jnp.where(live, jax.random.uniform(key, live.shape), 2.0)
  new = jnp.zeros_like(flat).at[places].set(flat[jnp.argsort(noise)])
  return jnp.where(live, new, 0).reshape(weights.shape)


def _constant(key, weights, mask):
  n = jnp.maximum(count(mask), 1).astype(weights.dtype)
  mean = jnp.sum(jnp.where(mask, weights, 0)) / n
  std = jnp.sqrt(jnp.sum(jnp.where(mask, (weights - mean) ** 2, 0)) / n)
  return std * jax.random.rademacher(key, weights.shape, weights.dtype)


def mask_zero(action: str, initial: PyTree, final: PyTree, masks: PyTree) -> PyTree:
  """The values at which pruned weights are held; live ones are those of `initial`.

  zero: 0;  init: w_i;  init_if_moved_away: w_i if |w_f| > |w_i|, else 0

  Train with `freeze_masked` to hold them there.

  Args:
    action: one of those three.
    initial: w_i, what is rewound to.
    final: w_f, the trained weights from which the masks were made.
    masks: of the ticket.

  Returns:
    A tree like `initial`.

  Raises:
    ValueError: there is no such action; structures or shapes differ.

  References:
    Zhou et al. 2019, "Deconstructing lottery tickets", section 3: freezing at the
    initial value is worse than zero, but not for weights that moved away from zero.

  Example:
    >>> initial, final = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[2.0, 1.0, 9.0]])
    >>> masks = jnp.array([[False, False, True]])
    >>> mask_zero("init_if_moved_away", initial, final, masks).tolist()
    [[1.0, 0.0, 3.0]]
  """
  if action not in MASK_ZERO:
    raise ValueError(f"action must be one of {', '.join(MASK_ZERO)}, got {action!r}.")
  if action == "zero":
    return rewind(initial, masks)
  leaves, treedef = jax.tree.flatten(initial)
  entries = align(initial, masks)
  nothing = jax.tree.map(lambda _: None, masks)
  if action == "init":
    return masked_copy(initial, nothing)
  ends = treedef.flatten_up_to(final)
  values = treedef.unflatten(
    i if m is None else jnp.where(m | (jnp.abs(f) > jnp.abs(i)), i, jnp.zeros_like(i))
    for i, f, m in zip(leaves, ends, entries, strict=True)
  )
  return masked_copy(values, nothing)


def random_masks(masks: PyTree, key: jax.Array, *, scope: str = "layer") -> PyTree:
  """Random masks with as many live weights, the control for a ticket's structure.

  layer: as many in every layer (the ticket's masks, shuffled);  even: the same density
  in every layer;  global: drawn from all weights of the network alike

  Args:
    masks: of the ticket.
    key: a PRNG key.
    scope: "layer", "even" or "global".

  Returns:
    A tree like `masks` with exactly as many live in all.

  Raises:
    ValueError: `scope` is none of the three.
    TypeError: a mask is not bool.

  References:
    Frankle and Carbin 2019, appendix F ("random sparsity"). The three scopes are those
    of open_lth's `randomly_prune`.

  Example:
    >>> masks = {"a": jnp.ones((1, 4), bool), "b": jnp.zeros((1, 4), bool)}
    >>> new = random_masks(masks, jax.random.key(0), scope="even")
    >>> int(new["a"].sum()), int(new["b"].sum())
    (2, 2)
  """
  if scope == "layer":
    return shuffle_masks(masks, key)
  if scope not in ("even", "global"):
    raise ValueError(f"scope must be 'layer', 'even' or 'global', got {scope!r}.")
  leaves, treedef = jax.tree.flatten(masks)
  total = sum(count(m) for m in leaves)
  draws = treedef.unflatten(
    uniform_like(k, m) for k, m in zip(leaf_keys(key, masks), leaves, strict=True)
  )
  everything = jax.tree.map(jnp.ones_like, masks)
  if scope == "global":
    return jax.jit(keep_best)(draws, everything, total)
  sizes = jnp.asarray([m.size for m in leaves], jnp.int32)
  counts = treedef.unflatten(list(apportion(sizes, total, sizes)))
  return jax.jit(top_k_masks)(draws, counts, everything)
