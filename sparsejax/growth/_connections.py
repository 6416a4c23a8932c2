"""Policy 1: dormant connections with the largest gradients wake up."""

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
  """Wakes the dormant connections along which the loss falls most steeply.

  masks += the best `count` of { i dormant, between two live units } by |dL/dw_i|

  A weight of zero that wakes starts from zero and takes the inner optimizer's step, so
  the function of the network is the same before and after.

  Args:
    masks: tree of bool arrays at the kernels.
    gradients: tree of the params' structure: the mean over a batch or an epoch of the
      dense gradients. Any scores will do: random ones grow at random.
    chain: of `growth.layers`.
    count: how many wake in the whole network, an integer, possibly traced; or a
      sequence of one a layer.

  Returns:
    The masks, with exactly so many more live connections where there are candidates.

  Raises:
    ValueError: `count` is a sequence of another length than the chain.

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
      f"count must hold one number a layer, {len(chain)}, got {len(count)}."
    )
  allowed = candidates(masks, chain)
  where = [get(allowed, layer.path) for layer in chain]
  scores = [jnp.abs(get(gradients, layer.path)) for layer in chain]
  counts = (
    jnp.stack([jnp.asarray(n, jnp.int32) for n in count])
    if per_layer
    else split_k(scores, count, where)
  )
  woken = top_k_masks(scores, list(counts), where)
  for layer, new in zip(chain, woken, strict=True):
    masks = put(masks, layer.path, get(masks, layer.path) | new)
  return masks
