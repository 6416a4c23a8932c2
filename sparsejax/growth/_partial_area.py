"""Partial-area convolution: input maps contribute to parts of the output area only."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.core import top_k_mask

Array = jax.Array


def partial_area_conv(
  x: Array,
  kernel: Array,
  areas: Array,
  *,
  strides: tuple[int, int] = (1, 1),
  padding: Any = "VALID",
) -> Array:
  """Convolves each input map with each kernel, and sums over part of the area only.

  F_n = sum_m (I_m * K_mn) . area_mn

  Args:
    x: float (n, height, width, channels).
    kernel: float (kernel height, kernel width, channels, features).
    areas: bool (out height, out width, channels, features), True where an input map
      contributes to a feature map.
    strides: the strides of the windows.
    padding: padding as in `jax.lax.conv_general_dilated`.

  Returns:
    float (n, out height, out width, features).

  Raises:
    ValueError: `areas` has a wrong shape.

  References:
    Dai, Yin & Jha 2017 (arXiv 1711.02017), section 3.4, "partial-area convolution".

  Example:
    >>> x, kernel = jnp.ones((1, 2, 2, 1)), jnp.ones((1, 1, 1, 1))
    >>> areas = jnp.array([[True, False], [False, True]])[..., None, None]
    >>> partial_area_conv(x, kernel, areas)[0, ..., 0]
    Array([[1., 0.],
           [0., 1.]], dtype=float32)
  """
  terms = contributions(x, kernel, strides=strides, padding=padding)
  if areas.shape != terms.shape[1:]:
    raise ValueError(
      f"areas must be of shape {terms.shape[1:]} (out height, out width, channels, "
      f"features), got {areas.shape}."
    )
  return jnp.sum(jnp.where(areas[None], terms, jnp.zeros_like(terms)), axis=3)


def contributions(
  x: Array, kernel: Array, *, strides: tuple[int, int] = (1, 1), padding: Any = "VALID"
) -> Array:
  """Computes the contribution of each input map to each feature map.

  C_mn = I_m * K_mn

  Args:
    x: float (n, height, width, channels).
    kernel: float (kernel height, kernel width, channels, features).
    strides: the strides of the windows.
    padding: padding as in `jax.lax.conv_general_dilated`.

  Returns:
    float (n, out height, out width, channels, features).
  """
  height, width, channels, features = kernel.shape
  out = lax.conv_general_dilated(
    x,
    kernel.reshape(height, width, 1, channels * features),
    strides,
    padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=channels,
  )
  return out.reshape(*out.shape[:-1], channels, features)


def prune_areas(areas: Array, size: Array, fraction: float = 0.01) -> Array:
  """Removes from each pair of maps the positions of smallest contribution.

  area_mn -= the `fraction` of the area, at live positions where |C_mn| is smallest

  Args:
    areas: bool (out height, out width, channels, features).
    size: float, of the same shape: the mean of |C| over a batch.
    fraction: the fraction of the whole area to remove, in [0, 1); about 0.01 per
      iteration, with retraining in between.

  Returns:
    The areas; each pair keeps at least one live position.

  Raises:
    ValueError: an argument is outside its range, or shapes differ.

  Example:
    >>> areas = jnp.ones((2, 2, 1, 1), bool)
    >>> size = jnp.array([[4.0, 1.0], [2.0, 3.0]])[..., None, None]
    >>> prune_areas(areas, size, 0.25)[..., 0, 0]
    Array([[ True, False],
           [ True,  True]], dtype=bool)
  """
  if not 0 <= fraction < 1:
    raise ValueError(f"fraction must be in [0, 1), got {fraction}.")
  if areas.shape != size.shape:
    raise ValueError(f"size must be of shape {areas.shape}, got {size.shape}.")
  cut = round(fraction * areas.shape[0] * areas.shape[1])

  def keep(area, size):
    live = jnp.sum(area)
    k = jnp.minimum(jnp.maximum(live - cut, 1), live)
    return top_k_mask(size, k, area)

  return jax.vmap(jax.vmap(keep, (2, 2), 2), (3, 3), 3)(areas, size)


def with_areas(
  apply: Callable[..., Any], areas: Mapping[str, Array]
) -> Callable[..., Any]:
  """Makes a model's convolutions partial-area convolutions.

  Args:
    apply: runs a flax linen module, such as `model.apply`.
    areas: from slash-separated paths of convolutions to the bool arrays that
      `partial_area_conv` takes.

  Returns:
    A function `(*args, **kwargs)` like `apply`. The model itself is not changed: its
    convolutions are intercepted while it is traced. They need `strides`, `padding` and
    a `kernel`.

  Example:
    >>> model = nn.Conv(2, (3, 3), padding="VALID")
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4, 4, 1)))
    >>> areas = {"": jnp.ones((2, 2, 1, 2), bool)}
    >>> x = jax.random.normal(jax.random.key(1), (3, 4, 4, 1))
    >>> whole, part = model.apply, with_areas(model.apply, areas)
    >>> bool(jnp.allclose(whole(variables, x), part(variables, x), atol=1e-6))
    True
  """

  def apply_with_areas(*args, **kwargs):
    def intercept(next_function, inner_args, inner_kwargs, context):
      name = "/".join(context.module.path)
      if context.method_name != "__call__" or name not in areas:
        return next_function(*inner_args, **inner_kwargs)
      # Compute the partial-area convolution with the module's own parameters.
      module = context.module
      strides = module.strides
      strides = (strides, strides) if isinstance(strides, int) else strides
      kernel = module.get_variable("params", "kernel")
      y = partial_area_conv(
        inner_args[0],
        kernel,
        areas[name],
        strides=strides or (1, 1),
        padding=module.padding,
      )
      if module.has_variable("params", "bias"):
        y = y + module.get_variable("params", "bias")[None, None, None]
      return y

    with nn.intercept_methods(intercept):
      return apply(*args, **kwargs)

  return apply_with_areas
