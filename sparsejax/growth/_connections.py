"""Policy 1: growth of the masked connections with the largest gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.core import split_k, top_k_masks
from sparsejax.growth._chain import Layer, candidates, get, put

Array = jax.Array
PyTree = Any


@functools.partial(jax.jit, static_argnames="chain")
def grow_connections(
  masks: PyTree, gradients: PyTree, chain: tuple[Layer, ...], count: Any
) -> PyTree:
  """Grows the masked connections with the largest gradients.

  masks += the best `count` of { i masked, between two live units } by |dL/dw_i|

  Grown weights start at zero, so growth does not change the network's function.

  Args:
    masks: tree of bool arrays at the kernels.
    gradients: tree like the params: the dense gradients, averaged over a batch or an
      epoch. Other scores can be used instead; random scores grow random connections.
    chain: the layers, from `growth.layers`.
    count: the number of connections to grow in the whole network, an integer, possibly
      traced, or a sequence of one number per layer.

  Returns:
    The masks with `count` more live connections, or fewer if there are too few
    candidates.

  Raises:
    ValueError: `count` is a sequence whose length differs from the chain's.

  References:
    Dai, Yin & Jha 2017 (arXiv 1711.02017), algorithm 1.

  Example:
    >>> chain = (Layer(("a",), (2, 2), 2, 1),)
    >>> masks = {"a": {"kernel": jnp.array([[True, False], [False, True]])}}
    >>> gradients = {"a": {"kernel": jnp.array([[9.0, -2.0], [1.0, 9.0]])}}
    >>> grow_connections(masks, gradients, chain, 1)["a"]["kernel"]
    Array([[ True,  True],
           [False,  True]], dtype=bool)
  """
  per_layer = isinstance(count, list | tuple)
  if per_layer and len(count) != len(chain):
    raise ValueError(
      f"count must contain one number per layer, {len(chain)}, got {len(count)}."
    )
  # Only masked connections between two live units may grow.
  allowed = candidates(masks, chain)
  where = [get(allowed, layer.path) for layer in chain]
  scores = [jnp.abs(get(gradients, layer.path)) for layer in chain]
  # Without counts per layer, rank the connections of all layers together.
  counts = (
    jnp.stack([jnp.asarray(n, jnp.int32) for n in count])
    if per_layer
    else split_k(scores, count, where)
  )
  grown = top_k_masks(scores, list(counts), where)
  for layer, new in zip(chain, grown, strict=True):
    masks = put(masks, layer.path, get(masks, layer.path) | new)
  return masks
