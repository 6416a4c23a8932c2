"""Bridging gradients: gradients of the loss for virtual connections over a layer."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparsejax.growth._chain import Layer

Array = jax.Array
PyTree = Any


def bridge(apply: Callable[..., Any], lower: Layer, upper: Layer) -> Callable[..., Any]:
  """Adds a virtual kernel from the inputs of one layer to the outputs of the next.

  u_upper += B^T x_lower

  At B = 0 the network is unchanged. For a loss that is a mean over the batch, dL/dB is
  then the bridging gradient

    G[n, m] = mean_batch(x_n^(l-2) dL/du_m^l)

  It measures how much a new unit between input n of layer l - 1 (`lower`) and output m
  of layer l (`upper`) would reduce the loss. The model itself is not changed: its
  layers are intercepted while it is traced.

  Args:
    apply: runs a flax linen module, such as `model.apply`.
    lower: a dense layer from `growth.layers`.
    upper: the dense layer after `lower`.

  Returns:
    A function `(kernel, *args, **kwargs)` that calls `apply(*args, **kwargs)` with the
    virtual kernel B, float (lower's rows, upper's features).

  Raises:
    ValueError: a layer is not dense.

  References:
    Dai, Yin & Jha 2017 (arXiv 1711.02017), algorithm 2.

  Example:
    >>> from sparsejax import models
    >>> from sparsejax.growth import layers
    >>> model, x = models.create("mlp", features=(4,)), jnp.ones((1, 2, 2, 1))
    >>> variables = model.init(jax.random.key(0), x)
    >>> lower, upper = layers(model, (2, 2, 1))
    >>> bridged = bridge(model.apply, lower, upper)
    >>> gradient = jax.grad(lambda b: bridged(b, variables, x)[0, 3])
    >>> gradient(jnp.zeros((4, 10)))[:, 3]
    Array([1., 1., 1., 1.], dtype=float32)
  """
  for name, layer in (("lower", lower), ("upper", upper)):
    if len(layer.shape) != 2:
      raise ValueError(
        f"{name} must be a dense layer, got {layer.name!r} of shape {layer.shape}; "
        "feature maps grow by `grow_feature_map`."
      )

  def apply_bridged(kernel, *args, **kwargs):
    seen = []

    def intercept(next_function, inner_args, inner_kwargs, context):
      here = context.method_name == "__call__"
      if here and context.module.path == lower.path:
        seen.append(inner_args[0])
      out = next_function(*inner_args, **inner_kwargs)
      if here and context.module.path == upper.path:
        return out + jnp.dot(seen[-1], kernel)
      return out

    with nn.intercept_methods(intercept):
      return apply(*args, **kwargs)

  return apply_bridged
