"""Sanity controls for masks: shuffled masks and reinitialized weights."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from sparsejax.core import (
  LayerAxes,
  PyTree,
  Stacked,
  Where,
  check_callable,
  check_flag,
  check_key,
  check_masks,
  check_stacked,
  copied,
  layer_axes,
  leaf_keys,
  live_in,
  selected,
  top_k_masks,
  uniform_like,
)


def shuffle_masks(masks: PyTree, key: jax.Array, *, stacked: Stacked = False) -> PyTree:
  """Draws random masks with the same number of live weights in every layer.

  masks'_l = a uniform draw among the masks with live_l weights

  A method whose masks are no better than shuffled ones has found only the densities of
  the layers.

  Args:
    masks: a tree of masks like that of `sj.masks`.
    key: a PRNG key.
    stacked: which leaves stack several layers; see `sparsify`.

  Returns:
    A tree like `masks`.

  Raises:
    TypeError: a leaf is not bool, or `key` is not a key.
    ValueError: there is no mask.

  References:
    Frankle et al. 2021, "Pruning neural networks at initialization: why are we missing
    the mark?", section 5. Su et al. 2020, "Sanity-checking pruning methods".

  Example:
    >>> import jax, jax.numpy as jnp, sparsejax as sj
    >>> masks = {"kernel": jnp.arange(12).reshape(3, 4) < 5, "bias": None}
    >>> shuffled = sj.shuffle_masks(masks, jax.random.key(0))
    >>> int(shuffled["kernel"].sum()), shuffled["bias"]
    (5, None)
  """
  leaves, treedef = jax.tree.flatten(masks)
  check_masks(masks)
  if not leaves:
    raise ValueError("masks must contain at least one array, got an empty tree.")
  check_key("key", key)
  check_stacked(stacked)
  # Count the live weights of each layer, then keep as many of uniform random draws.
  axes = layer_axes(masks, [True] * len(leaves), stacked)
  live = [live_in(leaf, a.budget) for leaf, a in zip(leaves, axes, strict=True)]
  keys = leaf_keys(key, masks)
  draws = [uniform_like(k, leaf) for k, leaf in zip(keys, leaves, strict=True)]
  everything = jax.tree.map(jnp.ones_like, masks)
  return top_k_masks(treedef.unflatten(draws), treedef.unflatten(live), everything)


def reinitialize(
  params: PyTree,
  init: Initializer,
  key: jax.Array,
  *,
  where: Where = None,
  stacked: Stacked = False,
  keep_signs: bool = False,
) -> PyTree:
  """Draws new values for the kernels; all other params are unchanged.

  w' = init(key_l, shape_l, dtype), or sign(w) |init(key_l, shape_l, dtype)|

  for each layer l, so that initializers see the fan-in of one layer.

  Train the new weights with the old masks. If the result is as good as with the old
  weights, the method has found a topology; if it is worse, the values of the weights
  matter too.

  Args:
    params: any pytree of arrays.
    init: an initializer such as those of `jax.nn.initializers`:
      `(key, shape, dtype) -> array`.
    key: a PRNG key; each layer uses a separate key derived from it.
    where: which leaves are reinitialized; given as in `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    keep_signs: whether the new weights take the signs of the old ones (zero if zero).

  Returns:
    A tree like `params`.

  Raises:
    TypeError: an argument has the wrong type, or `where` selects a leaf that is not
      floating point.
    ValueError: no leaf is selected.

  References:
    Frankle et al. 2021, "Pruning neural networks at initialization: why are we missing
    the mark?", section 5. With signs: Zhou et al. 2019, "Deconstructing lottery
    tickets", section 4.

  Example:
    >>> import jax, jax.numpy as jnp, sparsejax as sj
    >>> params = {"kernel": -jnp.ones((2, 2)), "bias": jnp.zeros(2)}
    >>> init = jax.nn.initializers.he_normal()
    >>> new = sj.reinitialize(params, init, jax.random.key(0), keep_signs=True)
    >>> bool((new["kernel"] < 0).all()), new["bias"].tolist()
    (True, [0.0, 0.0])
  """
  check_callable("init", init, "a function of (key, shape, dtype)", 3)
  check_key("key", key)
  check_flag("keep_signs", keep_signs)
  check_stacked(stacked)
  leaves, treedef = jax.tree.flatten(params)
  chosen = selected(params, where)
  axes = iter(layer_axes(params, chosen, stacked))
  new = []
  for leaf, is_chosen, leaf_key in zip(
    leaves, chosen, leaf_keys(key, params), strict=True
  ):
    if is_chosen:
      draw = _draw(init, leaf_key, next(axes), leaf.dtype)
      leaf = jnp.sign(leaf) * jnp.abs(draw) if keep_signs else draw
    new.append(leaf)
  return copied(treedef.unflatten(new))


def _draw(init: Initializer, key: jax.Array, axes: LayerAxes, dtype: Any) -> jax.Array:
  """Draws the layers of a leaf, each with a key of its own."""
  if not axes.stacked:
    return init(key, axes.shape, dtype)
  keys = jax.random.split(key, axes.length(axes.stacked))
  draws = jax.vmap(lambda k: init(k, axes.layer, dtype))(keys)
  stack = tuple(axes.shape[i] for i in axes.stacked)
  draws = draws.reshape(*stack, *axes.layer)
  return jnp.moveaxis(draws, range(len(stack)), axes.stacked)
