"""Policy 4: pruning of the smallest connections and of what becomes disconnected."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.analysis.compaction import live_parameters
from sparsejax.core import align, choose, replicated, split_k, top_k_masks
from sparsejax.growth._chain import Layer, connected, cut, fan_out, get, live_units, put

Array = jax.Array
PyTree = Any


@functools.partial(jax.jit, static_argnames=("chain", "powers"))
def prune_connections(
  masks: PyTree,
  weights: PyTree,
  chain: tuple[Layer, ...],
  keep: Any,
  powers: float = 0.0,
) -> PyTree:
  """Keeps the largest live connections, except those that become disconnected.

  masks = the best `keep` of the live by |w| / uses^powers, then `remove_dead`

  Args:
    masks: tree of bool arrays at the kernels.
    weights: tree like the params: the weights, or `effective_weights`.
    chain: the layers, from `growth.layers`.
    keep: the number of connections kept in the whole network, an integer, possibly
      traced, or a sequence of one number per layer.
    powers: the exponent of the number of uses of a weight per image. 0 ranks weights by
      magnitude, to save parameters; 0.5 ranks by w^2 per multiply-add, to save
      multiply-adds.

  Returns:
    The masks, with at most `keep` live connections.

  Raises:
    ValueError: `keep` is a sequence whose length differs from the chain's.

  References:
    Dai, Yin & Jha 2017 (arXiv 1711.02017), section 3.4; Han et al. 2015.

  Example:
    >>> chain = (Layer(("a",), (1, 2), 1, 1), Layer(("b",), (2, 1), 2, 1))
    >>> weights = {"a": {"kernel": jnp.array([[0.1, 3.0]])}}
    >>> weights["b"] = {"kernel": jnp.array([[2.0], [-4.0]])}
    >>> masks = jax.tree.map(lambda w: w != 0, weights)
    >>> masks = prune_connections(masks, weights, chain, 3)
    >>> masks["a"]["kernel"], masks["b"]["kernel"].T
    (Array([[False,  True]], dtype=bool), Array([[False,  True]], dtype=bool))
  """
  per_layer = isinstance(keep, list | tuple)
  if per_layer and len(keep) != len(chain):
    raise ValueError(
      f"keep must contain one number per layer, {len(chain)}, got {keep}."
    )
  # Score the live connections by magnitude, divided by their uses if asked for.
  live = [get(masks, layer.path) for layer in chain]
  scores = []
  for layer in chain:
    weight = jnp.abs(get(weights, layer.path))
    scores.append(weight * jnp.asarray(float(layer.uses) ** -powers, weight.dtype))
  # Without counts per layer, rank the connections of all layers together.
  counts = (
    jnp.stack([jnp.asarray(n, jnp.int32) for n in keep])
    if per_layer
    else split_k(scores, keep, live)
  )
  kept = top_k_masks(scores, list(counts), live)
  for layer, mask in zip(chain, kept, strict=True):
    masks = put(masks, layer.path, mask)
  return remove_dead(masks, chain)


@functools.partial(jax.jit, static_argnames="chain")
def remove_dead(masks: PyTree, chain: tuple[Layer, ...]) -> PyTree:
  """Removes the connections of units that have lost all inputs or all outputs.

  A unit without inputs has a constant output, its activated bias. It is removed too,
  and retraining compensates for the lost constant.

  Args:
    masks: tree of bool arrays at the kernels.
    chain: the layers, from `growth.layers`.

  Returns:
    The masks without the connections of such units. Units that lose all inputs or
    outputs by this are removed as well.

  Example:
    >>> chain = (Layer(("a",), (1, 2), 1, 1), Layer(("b",), (2, 1), 2, 1))
    >>> masks = {"a": {"kernel": jnp.array([[True, False]])}}
    >>> masks["b"] = {"kernel": jnp.array([[False], [True]])}
    >>> masks = remove_dead(masks, chain)
    >>> int(masks["a"]["kernel"].sum() + masks["b"]["kernel"].sum())
    0
  """
  return connected(masks, chain)


def remove_unreachable(
  masks: PyTree,
  apply_fn: Callable[[PyTree, Array], Any],
  params: PyTree,
  example: Any,
) -> PyTree:
  """Removes weights that are not on any path from input to output, in any network.

  masks & analysis.live_parameters(apply_fn, params, masks, example)

  This is `remove_dead` for networks that are not chains. It analyzes the traced
  program, so that a unit of a residual network is kept as long as any branch feeds it.

  Args:
    masks: bool arrays at the sparsified leaves of `params`, None elsewhere.
    apply_fn: `(params, inputs) -> outputs`, for inference.
    params: pytree of arrays, or of their abstract values.
    example: inputs `(n, ...)`; only shape and dtype are used.

  Returns:
    A tree like `masks`; each mask is a subset of the given one. The function cannot be
    traced, because masks are read on the host.

  Raises:
    ValueError: as for `analysis.compact`.

  Example:
    >>> apply = lambda p, x: (x + x @ p["skipped"]) @ p["head"]
    >>> params = {"skipped": jnp.ones((2, 2)), "head": jnp.ones((2, 1))}
    >>> masks = {"skipped": jnp.array([[True, False], [True, False]])}
    >>> masks["head"] = jnp.ones((2, 1), bool)
    >>> remove_unreachable(masks, apply, params, jnp.ones((1, 2)))["head"].tolist()
    [[True], [True]]
  """
  live = live_parameters(apply_fn, params, masks, example)
  live = choose(live, [mask is not None for mask in align(params, masks)])
  return jax.tree.map(jnp.logical_and, masks, live)


@functools.partial(jax.jit, static_argnames="chain")
def prune_units(
  masks: PyTree,
  weights: PyTree,
  chain: tuple[Layer, ...],
  keep: Sequence[Any],
) -> PyTree:
  """Keeps the most important inputs, neurons and feature maps, and removes the others.

  importance of a hidden unit = ||w_in||_2 ||w_out||_2, of an input ||w_out||_2

  Unstructured pruning leaves most units with a few connections each. Removing whole
  units is what makes a network faster.

  Args:
    masks: tree of bool arrays at the kernels.
    weights: tree like the params.
    chain: the layers, from `growth.layers`.
    keep: the numbers of units kept, integers, possibly traced: of the input, then of
      each hidden layer; as many as the chain has layers.

  Returns:
    The masks without the connections of removed units, and without those that become
    disconnected.

  Raises:
    ValueError: the length of `keep` differs from the chain's.

  Example:
    >>> chain = (Layer(("a",), (1, 2), 1, 1), Layer(("b",), (2, 1), 2, 1))
    >>> weights = {"a": {"kernel": jnp.array([[1.0, 3.0]])}}
    >>> weights["b"] = {"kernel": jnp.array([[2.0], [1.0]])}
    >>> masks = jax.tree.map(lambda w: w != 0, weights)
    >>> prune_units(masks, weights, chain, [1, 1])["a"]["kernel"]
    Array([[False,  True]], dtype=bool)
  """
  if len(keep) != len(chain):
    raise ValueError(
      f"keep must contain a number for the input and each hidden layer, {len(chain)}; "
      f"got {len(keep)}."
    )
  importance, live = unit_importance(masks, weights, chain)
  kept = top_k_masks(importance, [jnp.asarray(k, jnp.int32) for k in keep], live)
  for i, layer in enumerate(chain):
    masks = cut(masks, layer, source=kept[i])
    if i < len(chain) - 1:
      masks = cut(masks, layer, target=kept[i + 1])
  return remove_dead(masks, chain)


def unit_importance(
  masks: PyTree, weights: PyTree, chain: tuple[Layer, ...]
) -> tuple[list[Array], list[Array]]:
  """Computes the importance of each unit as in `prune_units`, and whether it is live.

  Args:
    masks: tree of bool arrays at the kernels.
    weights: tree like the params.
    chain: the layers, from `growth.layers`.

  Returns:
    Two lists of arrays (units,), one array for the input and one per hidden layer:
    float importances, and bool, True = live.
  """
  importance = []
  for i, layer in enumerate(chain):
    mask = get(masks, layer.path)
    out = _squares(get(weights, layer.path), mask).reshape(-1, *layer.shape[-2:])
    out = out.reshape(-1, layer.inputs, layer.features).sum((0, 2))
    if i:
      below = chain[i - 1]
      lower = get(masks, below.path)
      axes = tuple(range(lower.ndim - 1))
      into = _squares(get(weights, below.path), lower).sum(axes)
      out = replicated(out) * replicated(into)
    importance.append(replicated(jnp.sqrt(out)))
  inputs = fan_out(get(masks, chain[0].path), chain[0].inputs)
  return importance, [inputs, *live_units(masks, chain)[:-1]]


def effective_weights(
  params: PyTree, batch_stats: PyTree, chain: tuple[Layer, ...], epsilon: float = 1e-5
) -> PyTree:
  """Computes the weights as scaled by the batch normalization that follows.

  w_eff = w gamma / sqrt(var + epsilon), by output unit, where a norm follows the layer

  Args:
    params: tree of float arrays.
    batch_stats: running averages of flax's `BatchNorm`, under the norms' paths.
    chain: the layers, from `growth.layers`.
    epsilon: the epsilon of the norms.

  Returns:
    A tree like `params` with scaled kernels, for pruning by magnitude.

  Example:
    >>> chain = (Layer(("a",), (1, 2), 1, 1, ("n",)),)
    >>> params = {"a": {"kernel": jnp.ones((1, 2))}}
    >>> params["n"] = {"scale": jnp.array([2.0, 1.0])}
    >>> stats = {"n": {"var": jnp.array([1.0, 0.25])}}
    >>> effective_weights(params, stats, chain, 0.0)["a"]["kernel"]
    Array([[2., 2.]], dtype=float32)
  """
  for layer in chain:
    if layer.norm is None:
      continue
    kernel = get(params, layer.path)
    factor = get(params, layer.norm, "scale") / jnp.sqrt(
      get(batch_stats, layer.norm, "var") + epsilon
    )
    factor = factor.astype(kernel.dtype)
    factor = factor.reshape((1,) * (kernel.ndim - 1) + factor.shape)
    params = put(params, layer.path, kernel * factor)
  return params


def _squares(weight: Array, mask: Array) -> Array:
  return jnp.where(mask, jnp.square(weight), jnp.zeros_like(weight))
