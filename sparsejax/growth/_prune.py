"""Policy 4: the smallest connections go, then what is no longer connected."""

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
  """Keeps the largest live connections, and of them those that still lead anywhere.

  masks = the best `keep` of the live by |w| / uses^powers, then `remove_dead`

  Args:
    masks: tree of bool arrays at the kernels.
    weights: tree of the params' structure: the weights, or `effective_weights`.
    chain: of `growth.layers`.
    keep: how many stay in the whole network, an integer, possibly traced; or a sequence
      of one a layer.
    powers: how much a weight that is used at many positions has to be larger; 0 prunes
      for parameters, 0.5 for multiply-adds (saliency w^2 a multiply-add).

  Returns:
    The masks, with at most `keep` live connections.

  Raises:
    ValueError: `keep` is a sequence of another length than the chain.

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
    raise ValueError(f"keep must hold one number a layer, {len(chain)}, got {keep}.")
  live = [get(masks, layer.path) for layer in chain]
  scores = []
  for layer in chain:
    weight = jnp.abs(get(weights, layer.path))
    scores.append(weight * jnp.asarray(float(layer.uses) ** -powers, weight.dtype))
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
  """Removes neurons and feature maps that lost all inputs or all outputs.

  A unit without inputs gives a constant, its activated bias; it goes too, and the
  retraining makes up for it.

  Args:
    masks: tree of bool arrays at the kernels.
    chain: of `growth.layers`.

  Returns:
    The masks without the connections of such units, and of those that then are such.

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
  """Removes the weights that no input reaches or no output needs, in any network.

  masks & analysis.live_parameters(apply_fn, params, masks, example)

  What `remove_dead` does in a chain, read off the program: a unit of a residual
  network that one branch no longer feeds still carries the others.

  Args:
    masks: bool arrays at the sparsified leaves of `params`, None elsewhere.
    apply_fn: `(params, inputs) -> outputs`, for inference.
    params: pytree of arrays, or of their abstract values.
    example: inputs `(n, ...)`; only shape and dtype are used.

  Returns:
    Masks like `masks`, subsets of them. Not traceable: masks are read on the host.

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
  """Keeps the most important inputs, neurons and feature maps, whole.

  importance of a hidden unit = ||w_in||_2 ||w_out||_2, of an input ||w_out||_2

  Unstructured pruning leaves most units a connection or two, and a network is only
  faster without them where whole units go.

  Args:
    masks: tree of bool arrays at the kernels.
    weights: tree of the params' structure.
    chain: of `growth.layers`.
    keep: how many units stay, integers, possibly traced: of the input, then of each
      hidden layer; as many as the chain has layers.

  Returns:
    The masks without the connections of the other units, and without what is dead then.

  Raises:
    ValueError: `keep` has another length than the chain.

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
      f"keep must hold a number for the input and each hidden layer, {len(chain)}; got "
      f"{len(keep)}."
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
  """The importance of each unit as in `prune_units`, and whether it is there.

  Args:
    masks: tree of bool arrays at the kernels.
    weights: tree of the params' structure.
    chain: of `growth.layers`.

  Returns:
    Two lists, of the input and of each hidden layer: float and bool (units,).
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
  """The weights as batch normalization scales them.

  w_eff = w gamma / sqrt(var + epsilon), by output unit, where a norm follows the layer

  Args:
    params: tree of floats.
    batch_stats: of flax's `BatchNorm`: running averages under the norms' paths.
    chain: of `growth.layers`.
    epsilon: the norms' own.

  Returns:
    A tree like `params` with other kernels; what pruning by magnitude has to look at.

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
