"""Policy 3: growth of feature maps, by the best of several random kernels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.core import widened
from sparsejax.growth._chain import Layer, between, get, live_units, put

Array = jax.Array
PyTree = Any


def grow_feature_map(
  loss: Callable[[PyTree], Array],
  params: PyTree,
  masks: PyTree,
  chain: tuple[Layer, ...],
  index: int,
  key: Array,
  *,
  candidates: int = 16,
  density: float = 0.3,
) -> tuple[PyTree, PyTree, Array]:
  """Adds a feature map to a convolution, with the best of several random kernels.

  map = argmin_c loss(params with the kernels of draw c)

  Each draw consists of the map's kernels from the maps below and its weights into the
  layer above. All draws are evaluated together, by `jax.vmap` over these two kernels.

  Args:
    loss: `(params) -> scalar` on a batch.
    params: tree of float arrays, masked.
    masks: tree of bool arrays at the kernels.
    chain: the layers, from `growth.layers`.
    index: the index of the convolution in the chain; not that of the last layer.
    key: a PRNG key.
    candidates: the number of draws, at least 1.
    density: fraction of the new weights that is live, in (0, 1]. The others can be
      grown later by `grow_connections`.

  Returns:
    Params, masks, and float (candidates,), the loss of each draw. If the convolution
    has no unused map, params and masks are unchanged; then double the capacity.

  Raises:
    ValueError: an argument is outside its range, or the layer is not a convolution.

  References:
    Dai, Yin & Jha 2017 (arXiv 1711.02017), algorithm 3.

  Example:
    >>> chain = Layer(("a",), (1, 1, 1, 2), 1, 1), Layer(("b",), (2, 1), 2, 1)
    >>> params = {"a": {"kernel": jnp.zeros((1, 1, 1, 2)).at[..., 0].set(1.0)}}
    >>> params["b"] = {"kernel": jnp.array([[1.0], [0.0]])}
    >>> masks = jax.tree.map(lambda w: w != 0, params)
    >>> params["a"]["bias"] = jnp.zeros(2)
    >>> loss = lambda p: (p["a"]["kernel"][0, 0, 0] @ p["b"]["kernel"])[0]
    >>> params, masks, losses = grow_feature_map(
    ...   loss, params, masks, chain, 0, jax.random.key(0), density=1.0
    ... )
    >>> bool(loss(params) == losses.min()), int(masks["a"]["kernel"].sum())
    (True, 2)
  """
  _check(chain, index, candidates, density)
  layer, above = chain[index], chain[index + 1]
  kernel, kernel_above = get(params, layer.path), get(params, above.path)
  mask, mask_above = get(masks, layer.path), get(masks, above.path)
  # Take the first unused map, and connect it to the live units below and above.
  units = live_units(masks, chain)
  below = units[index - 1] if index else jnp.ones(layer.inputs, bool)
  unused = ~units[index]
  added = unused & (jnp.cumsum(unused) == 1)
  place_in = between(below, added, layer)
  place_out = between(added, units[index + 1], above)

  def draw(key):
    keys = jax.random.split(key, 4)
    new_mask, new = _random(keys[:2], kernel, mask, place_in, density)
    new_mask_above, new_above = _random(
      keys[2:], kernel_above, mask_above, place_out, density
    )
    return new, new_above, new_mask, new_mask_above

  def evaluate(new, new_above):
    return loss(put(put(params, layer.path, new), above.path, new_above))

  # Draw all candidates, evaluate them, and keep the one of lowest loss.
  drawn = jax.vmap(draw)(jax.random.split(key, candidates))
  losses = jax.vmap(evaluate)(*drawn[:2])
  best = jnp.argmin(losses)
  new, new_above, new_mask, new_mask_above = (x[best] for x in drawn)
  params = put(put(params, layer.path, new), above.path, new_above)
  masks = put(put(masks, layer.path, new_mask), above.path, new_mask_above)
  if layer.bias:
    bias = get(params, layer.path, "bias")
    bias = jnp.where(added, jnp.zeros_like(bias), bias)
    params = put(params, layer.path, bias, "bias")
  return params, masks, losses


def _random(keys, kernel, mask, place, density):
  """Draws weights at random places, with the layer's root mean square."""
  wide = widened(kernel)  # for the sum
  live = jnp.maximum(jnp.sum(mask), 1).astype(wide.dtype)
  spread = jnp.sqrt(jnp.sum(jnp.square(wide) * mask.astype(wide.dtype)) / live)
  spread = jnp.where(spread > 0, spread, jnp.ones_like(spread)).astype(kernel.dtype)
  chosen = place & (jax.random.uniform(keys[0], kernel.shape) < density)
  # If no weight was drawn, use all places, as the map needs at least one weight.
  chosen = jnp.where(jnp.any(chosen), chosen, place)
  values = spread * jax.random.normal(keys[1], kernel.shape, kernel.dtype)
  cleared = jnp.where(place, jnp.zeros_like(kernel), kernel)
  return (mask & ~place) | chosen, jnp.where(chosen, values, cleared)


def _check(chain, index, candidates, density):
  if not 0 <= index < len(chain) - 1 or len(chain[index].shape) != 4:
    raise ValueError(
      "index must be that of a convolution with a layer above it in the chain of "
      f"{len(chain)}, got {index}."
    )
  if candidates < 1:
    raise ValueError(f"candidates must be at least 1, got {candidates}.")
  if not 0 < density <= 1:
    raise ValueError(f"density must be in (0, 1], got {density}.")
