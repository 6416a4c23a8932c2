"""Policy 2: growth of neurons where bridging gradients are largest."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.core import top_k_mask, widened
from sparsejax.growth._chain import Layer, fan_in, fan_out, get, put

Array = jax.Array
PyTree = Any


@functools.partial(jax.jit, static_argnames=("lower", "upper", "beta", "alpha"))
def grow_neurons(
  params: PyTree,
  masks: PyTree,
  lower: Layer,
  upper: Layer,
  gradient: Array,
  key: Array,
  *,
  count: Any = 1,
  beta: float = 0.1,
  alpha: float = 0.5,
) -> tuple[PyTree, PyTree]:
  """Grows neurons between two layers, connected so that the loss decreases.

  For each of the best beta of all pairs (n, m) by |G[n, m]|, and a random sign e:

    in[n]  -= e sgn(G[n, m]) sqrt(|G[n, m]|);   out[m] += e sqrt(|G[n, m]|)

  so that in[n] out[m] has the sign of -G. Each vector is then scaled so that the mean
  magnitude of its nonzero entries is alpha (the birth strength) times that of its
  layer's live weights. Note the sign: G is dL/dB itself, while papers that print +sgn
  use the negative gradient.

  Args:
    params: tree of float arrays.
    masks: tree of bool arrays at the kernels.
    lower: the dense layer whose output units are grown.
    upper: the dense layer after `lower`.
    gradient: float (lower's rows, upper's features): dL/dB of `growth.bridge` at 0.
    key: a PRNG key for the signs, which differ between neurons.
    count: the number of neurons to grow, an integer, possibly traced. Fewer are grown
      if the layer has fewer unused units; then double the capacity.
    beta: fraction of the pairs that are connected, in (0, 1].
    alpha: birth strength, above 0; the paper finds that it must be above 0.3.

  Returns:
    Params and masks with the grown neurons, whose biases are zero.

  Raises:
    ValueError: an argument is outside its range, or shapes do not fit.

  References:
    Dai, Yin & Jha 2017 (arXiv 1711.02017), algorithm 2.

  Example:
    >>> lower, upper = Layer(("a",), (2, 2), 2, 1), Layer(("b",), (2, 1), 2, 1)
    >>> params = {"a": {"kernel": jnp.array([[1.0, 0.0], [1.0, 0.0]])}}
    >>> params["b"] = {"kernel": jnp.array([[2.0], [0.0]])}
    >>> masks = jax.tree.map(lambda w: w != 0, params)
    >>> params["a"]["bias"], params["b"]["bias"] = jnp.ones(2), jnp.zeros(1)
    >>> gradient = jnp.array([[0.25], [0.0]])
    >>> params, masks = grow_neurons(
    ...   params, masks, lower, upper, gradient, jax.random.key(0), beta=0.5
    ... )
    >>> new_in, new_out = params["a"]["kernel"][:, 1], params["b"]["kernel"][1]
    >>> abs(new_in), abs(new_out), new_in[0] * new_out[0]
    (Array([0.5, 0. ], dtype=float32), Array([1.], dtype=float32),
     Array(-0.5, dtype=float32))
  """
  _check(lower, upper, gradient, beta, alpha)
  below, above = get(params, lower.path), get(params, upper.path)
  mask_below, mask_above = get(masks, lower.path), get(masks, upper.path)
  # Select the pairs of input and output with the largest gradients.
  pairs = max(1, round(beta * gradient.size))
  size = jnp.abs(gradient)
  best = top_k_mask(size, pairs, size > 0)
  root = jnp.where(best, jnp.sqrt(size), jnp.zeros_like(size))

  def wire(key):
    sign = jax.random.rademacher(key, gradient.shape, gradient.dtype)
    into = -jnp.sum(sign * jnp.sign(gradient) * root, axis=1)
    out = jnp.sum(sign * root, axis=0)
    return into, out

  # The first `count` unused units are grown. Weights are computed for every unit, in
  # static shapes, and written to the grown ones only.
  unused = ~(fan_in(mask_below) & fan_out(mask_above, upper.inputs))
  rank = jnp.cumsum(unused) - 1  # 0, 1, ... over the unused units
  added = unused & (rank < count)
  into, out = jax.vmap(wire)(jax.random.split(key, lower.features))
  into = _strength(into, below, mask_below, alpha)
  out = _strength(out, above, mask_above, alpha)
  into, out = into.T, out  # (rows, features) and (features, upper's features)
  columns, rows = added[None, :], added[:, None]
  params = put(params, lower.path, jnp.where(columns, into, below))
  params = put(params, upper.path, jnp.where(rows, out, above))
  masks = put(masks, lower.path, jnp.where(columns, into != 0, mask_below))
  masks = put(masks, upper.path, jnp.where(rows, out != 0, mask_above))
  if lower.bias:
    bias = get(params, lower.path, "bias")
    bias = jnp.where(added, jnp.zeros_like(bias), bias)
    params = put(params, lower.path, bias, "bias")
  return params, masks


def _strength(vectors: Array, kernel: Array, mask: Array, alpha: float) -> Array:
  """Scales each row, so that its mean magnitude is alpha times the kernel's.

  The means are over the nonzero entries of the row and the kernel's live weights.
  """
  vectors, wide = widened(vectors), widened(kernel)  # for the sums
  live = jnp.maximum(jnp.sum(mask), 1).astype(wide.dtype)
  wanted = alpha * jnp.sum(jnp.abs(wide) * mask.astype(wide.dtype)) / live
  entries = jnp.maximum(jnp.sum(vectors != 0, axis=1), 1).astype(wide.dtype)
  mean = jnp.sum(jnp.abs(vectors), axis=1) / entries
  factor = jnp.where(mean > 0, wanted / jnp.where(mean > 0, mean, 1.0), 0.0)
  # A layer without live weights has no mean magnitude: leave the vectors unscaled.
  factor = jnp.where(jnp.any(mask), factor, jnp.ones_like(factor))
  return (vectors * factor[:, None]).astype(kernel.dtype)


def _check(lower, upper, gradient, beta, alpha):
  for name, layer in (("lower", lower), ("upper", upper)):
    if len(layer.shape) != 2:
      raise ValueError(
        f"{name} must be a dense layer, got {layer.name!r} of shape {layer.shape}."
      )
  expected = (lower.shape[0], upper.shape[1])
  if gradient.shape != expected:
    raise ValueError(
      f"gradient must be of shape {expected}, inputs of {lower.name!r} to outputs of "
      f"{upper.name!r}; got {gradient.shape}."
    )
  if not 0 < beta <= 1:
    raise ValueError(f"beta must be in (0, 1], got {beta}.")
  if not alpha > 0:
    raise ValueError(f"alpha must be above 0, got {alpha}.")
