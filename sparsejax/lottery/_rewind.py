"""Rewinding of tickets, and control experiments with other initial values and masks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.core import (
  LayerAxes,
  Stacked,
  align,
  apportion,
  check_callable,
  check_key,
  check_stacked,
  count,
  from_vector,
  layer_axes,
  layer_sizes,
  leaf_keys,
  masked_copy,
  top_k_masks,
  uniform_like,
  widened,
)
from sparsejax.second_order import keep_best
from sparsejax.transforms import shuffle_masks

PyTree = Any
MASK_ONE = ("rewind", "reinit", "reshuffle", "constant")
MASK_ZERO = ("zero", "init", "init_if_moved_away")


def rewind(params: PyTree, masks: PyTree) -> PyTree:
  """Rewinds a ticket: returns the weights of an earlier step, masked.

  w' = m * w_k

  Args:
    params: w_k, the weights of step k; k = 0 for the original lottery tickets.
    masks: the masks that `prune` returned for the trained weights.

  Returns:
    A tree like `params`. Its arrays are copies, so `params` can be used for the next
    ticket even if training donates them.

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
  stacked: Stacked = False,
) -> PyTree:
  """Computes initial values of a ticket's live weights by a mask-1 action.

  rewind: w;  reinit: w' of another draw;  reshuffle: the live weights of the layer in
  another order;  constant: their standard deviation, at a random sign.
  With `keep_signs`, sign(w) |w'|.

  Comparing the actions shows which property of the rewound values a ticket needs.

  Args:
    action: "rewind", "reinit", "reshuffle" or "constant".
    params: w, the weights of the step that is rewound to.
    masks: the masks of the ticket. Leaves without a mask are rewound, or drawn again
      by "reinit".
    key: a PRNG key.
    fresh: `(key) -> tree like params`, initializes a network; needed by "reinit".
    keep_signs: whether new weights take the signs of the old ones.
    stacked: which leaves stack several layers; see `sj.sparsify`. "reshuffle" and
      "constant" treat each of these layers by itself.

  Returns:
    A tree like `params`, zero where masked.

  Raises:
    TypeError: `key` is not a key, or `stacked` has the wrong type.
    ValueError: `action` is unknown, `fresh` is missing for "reinit", or `stacked`
      selects no leaf with a mask.

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
  check_stacked(stacked)
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
    axes = iter(layer_axes(params, [m is not None for m in entries], stacked))
    new = [
      w if m is None else _in_each_layer(draw, k, w, m, next(axes))
      for k, w, m in zip(leaf_keys(key, params), leaves, entries, strict=True)
    ]
  if keep_signs:
    new = [
      w if m is None else jnp.sign(old) * jnp.abs(w)
      for w, old, m in zip(new, leaves, entries, strict=True)
    ]
  return masked_copy(treedef.unflatten(new), masks)


def _in_each_layer(draw, key, weights, mask, axes: LayerAxes):
  """Draws the new weights of each layer that a leaf stacks by themselves."""
  rows = len(axes.stacked)
  if not rows:
    return draw(key, weights, mask)
  weights, mask = (
    jnp.moveaxis(x, axes.stacked, tuple(range(rows))) for x in (weights, mask)
  )
  for _ in range(rows):
    draw = _over_rows(draw)
  return jnp.moveaxis(draw(key, weights, mask), tuple(range(rows)), axes.stacked)


def _over_rows(draw):
  def drawn(key, weights, mask):
    return jax.vmap(draw)(jax.random.split(key, len(weights)), weights, mask)

  return drawn


def _reshuffled(key, weights, mask):
  # Write the live weights, in a random order, to the positions of the live weights.
  flat, live = weights.reshape(-1), mask.reshape(-1)
  places = jnp.argsort(~live, stable=True)
  noise = jnp.where(live, jax.random.uniform(key, live.shape), 2.0)
  new = jnp.zeros_like(flat).at[places].set(flat[jnp.argsort(noise)])
  return jnp.where(live, new, 0).reshape(weights.shape)


def _constant(key, weights, mask):
  wide = widened(weights)  # in float16 a sum of 65,504 weights may overflow
  n = jnp.maximum(count(mask), 1).astype(wide.dtype)
  mean = jnp.sum(jnp.where(mask, wide, 0)) / n
  std = jnp.sqrt(jnp.sum(jnp.where(mask, (wide - mean) ** 2, 0)) / n)
  return std.astype(weights.dtype) * jax.random.rademacher(
    key, weights.shape, weights.dtype
  )


def mask_zero(action: str, initial: PyTree, final: PyTree, masks: PyTree) -> PyTree:
  """Computes the values of a ticket's masked weights; live weights are rewound.

  zero: 0;  init: w_i;  init_if_moved_away: w_i if |w_f| > |w_i|, else 0

  Train with `freeze_masked` to keep masked weights at these values.

  Args:
    action: "zero", "init" or "init_if_moved_away".
    initial: w_i, the weights that are rewound to.
    final: w_f, the trained weights from which the masks were computed.
    masks: the masks of the ticket.

  Returns:
    A tree like `initial`.

  Raises:
    ValueError: `action` is unknown, or structures or shapes differ.

  References:
    Zhou et al. 2019, "Deconstructing lottery tickets", section 3: freezing masked
    weights at their initial values is worse than at zero, but not for weights that
    moved away from zero.

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


def random_masks(
  masks: PyTree,
  key: jax.Array,
  *,
  scope: str = "layer",
  stacked: Stacked = False,
) -> PyTree:
  """Draws random masks with as many live weights as a ticket.

  layer: as many in every layer (the ticket's masks, shuffled);  even: the same density
  in every layer;  global: drawn from all weights of the network alike

  They are the control experiment for a ticket's structure.

  Args:
    masks: the masks of the ticket.
    key: a PRNG key.
    scope: "layer", "even" or "global".
    stacked: which leaves stack several layers; see `sj.sparsify`. Each of these layers
      has a count of its own, except with `scope="global"`.

  Returns:
    A tree like `masks` with exactly the same total number of live weights.

  Raises:
    ValueError: `scope` is unknown, or `stacked` selects no mask.
    TypeError: a mask is not bool, or `stacked` has the wrong type.

  References:
    Frankle and Carbin 2019, appendix F ("random sparsity"). The three scopes are those
    of open_lth's `randomly_prune`.

  Example:
    >>> masks = {"a": jnp.ones((1, 4), bool), "b": jnp.zeros((1, 4), bool)}
    >>> new = random_masks(masks, jax.random.key(0), scope="even")
    >>> int(new["a"].sum()), int(new["b"].sum())
    (2, 2)
  """
  check_stacked(stacked)
  if scope == "layer":
    return shuffle_masks(masks, key, stacked=stacked)
  if scope not in ("even", "global"):
    raise ValueError(f"scope must be 'layer', 'even' or 'global', got {scope!r}.")
  leaves, treedef = jax.tree.flatten(masks)
  axes = layer_axes(masks, [True] * len(leaves), stacked)
  total = sum(count(m) for m in leaves)
  draws = treedef.unflatten(
    uniform_like(k, m) for k, m in zip(leaf_keys(key, masks), leaves, strict=True)
  )
  everything = jax.tree.map(jnp.ones_like, masks)
  if scope == "global":
    return jax.jit(keep_best)(draws, everything, total)
  like = treedef.unflatten(a.budget for a in axes)
  sizes = jnp.asarray(layer_sizes(masks, like), jnp.int32)
  counts = from_vector(apportion(sizes, total, sizes), like)
  return jax.jit(top_k_masks)(draws, counts, everything)
