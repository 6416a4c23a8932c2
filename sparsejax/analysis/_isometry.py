"""Singular values of Jacobians, which show whether a deep network is an isometry."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
LayerFunction = Callable[[PyTree, jax.Array], jax.Array]


class Spectrum(NamedTuple):
  """Singular values of a Jacobian as logarithms, because products of layers underflow.

  Attributes:
    log10: float64 (n,), log10 of the singular values, largest first; -inf for zero.
      Values more than seven decades below the first are float32 noise.
  """

  log10: np.ndarray

  @property
  def condition_number(self) -> float:
    """The ratio of the largest to the smallest singular value."""
    return float(10.0 ** min(self.log10[0] - self.log10[-1], 300.0))

  @property
  def log10_median(self) -> float:
    """The log10 of the median; finite where the median itself underflows float64."""
    return float(np.median(self.log10))

  @property
  def median(self) -> float:
    """The median singular value."""
    return float(10.0**self.log10_median)


def end_to_end(layer: LayerFunction, params: PyTree, x: jax.Array) -> Spectrum:
  """Computes the singular values of the Jacobian of a stack of layers.

  J = D_L W_L ... D_1 W_1,  by U <- U J_l / s_l with s_l = max |U J_l|, and sum log s_l

  The product is taken from the last layer to the first and rescaled at each, so it
  neither overflows nor underflows at any depth. It takes the time of n backward passes
  for one input of n elements.

  Args:
    layer: `(params of one layer, h) -> h` that keeps the shape of h. For a
      `VanillaCNN`, its method `layer`, with the subtree `trunk` of its parameters.
    params: pytree whose leaves have a leading axis of layers.
    x: the first layer's input for one example, scaled as in the network.

  Returns:
    A `Spectrum` of x.size values.

  Raises:
    ValueError: a layer changes the shape of its input.

  Example:
    >>> layer = lambda w, h: w @ h
    >>> params = jnp.broadcast_to(jnp.diag(jnp.array([1.0, 1e-2])), (300, 2, 2))
    >>> end_to_end(layer, params, jnp.ones(2)).log10.round(3).tolist()[0]
    0.0
  """
  _check(layer, params, x)
  log_scale, product = _product(layer)(params, x)
  return _spectrum(np.asarray(product), float(log_scale))


def single_layers(
  layer: LayerFunction, params: PyTree, x: jax.Array, layers: Sequence[int]
) -> list[Spectrum]:
  """Computes the singular values of single layers' Jacobians, at their inputs.

  Args:
    layer: as for `end_to_end`.
    params: as for `end_to_end`.
    x: as for `end_to_end`.
    layers: indices of the layers, counted from 0.

  Returns:
    One `Spectrum` per layer.

  Raises:
    ValueError: a layer changes the shape of its input.
    IndexError: there is no such layer.

  Example:
    >>> layer, w = lambda w, h: w * h, jnp.array([[1.0, 1.0], [2.0, 0.2]])
    >>> [s] = single_layers(layer, w, jnp.ones(2), [1])
    >>> round(s.condition_number, 3)
    10.0
  """
  _check(layer, params, x)
  depth = jax.tree.leaves(params)[0].shape[0]
  if any(not 0 <= i < depth for i in layers):
    raise IndexError(f"layers must be in [0, {depth}); got {list(layers)}.")
  inputs = _inputs(layer)(params, x)
  jacobian = _jacobian(layer)
  found = []
  for i in layers:
    weights = jax.tree.map(lambda p, i=i: p[i], params)
    found.append(_spectrum(np.asarray(jacobian(weights, inputs[i])), 0.0))
  return found


def _check(layer, params, x):
  weights = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape[1:], p.dtype), params)
  after = jax.eval_shape(layer, weights, x)
  if after.shape != x.shape:
    raise ValueError(
      f"layer must keep the shape of its input, got {x.shape} to {after.shape}."
    )


def _run(layer, params, x):
  return jax.lax.scan(lambda h, w: (layer(w, h), h), x, params)[1]


def _inputs(layer):
  return jax.jit(partial(_run, layer))


def _jacobian(layer):
  def jacobian(weights, h):
    return jax.jacrev(lambda h: layer(weights, h))(h).reshape(h.size, h.size)

  return jax.jit(jacobian)


def _product(layer):
  def product(params, x):
    def back(carry, inputs):
      log_scale, rows = carry
      weights, h = inputs
      pull = jax.vjp(lambda h: layer(weights, h), h)[1]
      rows = jax.vmap(lambda row: pull(row)[0])(rows)
      size = jnp.max(jnp.abs(rows))
      # A zero product stays zero; `_spectrum` takes its logarithm, -inf.
      safe = jnp.where(size > 0, size, jnp.ones_like(size))
      return (log_scale + jnp.log10(safe), rows / safe), None

    eye = jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
    start = (jnp.zeros((), x.dtype), eye)
    (log_scale, rows), _ = jax.lax.scan(
      back, start, (params, _run(layer, params, x)), reverse=True
    )
    return log_scale, rows.reshape(x.size, x.size)

  return jax.jit(product)


def _spectrum(matrix: np.ndarray, log_scale: float) -> Spectrum:
  if not np.isfinite(matrix).all():
    return Spectrum(np.full(matrix.shape[0], np.nan))
  values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
  with np.errstate(divide="ignore"):
    return Spectrum(np.log10(values) + log_scale)
