"""Partial-area convolution: input maps contribute to parts of the output area only."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax import lax

from sparsejax.core import named_leaves, top_k_mask
from sparsejax.growth._chain import Layer, get

Array = jax.Array
PyTree = Any


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
  terms = jax.eval_shape(
    lambda *args: contributions(*args, strides=strides, padding=padding), x, kernel
  )
  if areas.shape != terms.shape[1:]:
    raise ValueError(
      f"areas must be of shape {terms.shape[1:]} (out height, out width, channels, "
      f"features), got {areas.shape}."
    )

  # Add up channel by channel: the contributions of all channels at once need as much
  # memory as the layer's output, times the number of its input channels.
  def add(total, channel):
    one, weights, area = channel
    term = _one_channel(one, weights, strides, padding)
    return total + jnp.where(area[None], term, jnp.zeros_like(term)), None

  total = jnp.zeros((*terms.shape[:3], terms.shape[4]), terms.dtype)
  return lax.scan(add, total, (*_channels(x, kernel), jnp.moveaxis(areas, 2, 0)))[0]


def _mean_sizes(x: Array, kernel: Array, *, strides: Any, padding: Any) -> Array:
  """Returns the mean of |C_mn| over a batch, (out height, out width, channels, ...)."""

  def mean(channel):
    one, weights = channel
    return jnp.mean(jnp.abs(_one_channel(one, weights, strides, padding)), axis=0)

  return jnp.moveaxis(lax.map(mean, _channels(x, kernel)), 0, 2)


def _channels(x: Array, kernel: Array) -> tuple[Array, Array]:
  """Returns the images and the kernel with their channels on the first axis."""
  return jnp.moveaxis(x, 3, 0), jnp.moveaxis(kernel, 2, 0)


def _one_channel(x: Array, kernel: Array, strides: Any, padding: Any) -> Array:
  """Convolves (n, height, width) with (kernel height, kernel width, features)."""
  return lax.conv_general_dilated(
    x[..., None],
    kernel[:, :, None],
    strides,
    padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


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

  def smaller(area, size):
    live = jnp.sum(area)
    k = jnp.minimum(jnp.maximum(live - cut, 1), live)
    return top_k_mask(size, k, area)

  return jax.vmap(jax.vmap(smaller, (2, 2), 2), (3, 3), 3)(areas, size)


def whole_areas(model: nn.Module, image_shape: tuple[int, ...]) -> dict[str, Array]:
  """Returns areas in which every input map contributes everywhere.

  Args:
    model: a flax linen module.
    image_shape: the shape of one image, such as (28, 28, 1).

  Returns:
    For each convolution, by its slash-separated path, bool (out height, out width,
    channels, features), all True. The model is traced, not run.

  Example:
    >>> model = nn.Conv(2, (3, 3), padding="VALID")
    >>> {name: area.shape for name, area in whole_areas(model, (4, 4, 1)).items()}
    {'': (2, 2, 1, 2)}
  """
  found: dict[str, np.ndarray] = {}

  def record(next_function, args, kwargs, context):
    out = next_function(*args, **kwargs)
    module = context.module
    if context.method_name == "__call__" and module.has_variable("params", "kernel"):
      kernel = module.get_variable("params", "kernel")
      if kernel.ndim == 4:
        shape = (*out.shape[1:3], *kernel.shape[2:])
        found["/".join(module.path)] = np.ones(shape, bool)
    return out

  images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  with nn.intercept_methods(record):
    jax.eval_shape(model.init, jax.random.key(0), images)
  return {name: jnp.asarray(area) for name, area in found.items()}


def with_areas(apply: Callable[..., Any], areas: PyTree) -> Callable[..., Any]:
  """Makes a model's convolutions partial-area convolutions.

  Args:
    apply: runs a flax linen module, such as `model.apply`.
    areas: from slash-separated paths of convolutions to the bool arrays that
      `partial_area_conv` takes; or a tree with the same paths.

  Returns:
    A function `(*args, **kwargs)` like `apply`. The model itself is not changed: its
    convolutions (`nn.Conv`, or a module with its attributes) are intercepted while it
    is traced.

  Raises:
    ValueError: while the function runs, an area is at another module, or its
      convolution has dilation, groups, a mask, or circular or causal padding.

  Example:
    >>> model = nn.Conv(2, (3, 3), padding="VALID")
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4, 4, 1)))
    >>> areas = whole_areas(model, (4, 4, 1))
    >>> x = jax.random.normal(jax.random.key(1), (3, 4, 4, 1))
    >>> whole, part = model.apply, with_areas(model.apply, areas)
    >>> bool(jnp.allclose(whole(variables, x), part(variables, x), atol=1e-6))
    True
  """
  return _with_areas(apply, areas)


def area_contributions(
  apply: Callable[..., Any], areas: PyTree
) -> Callable[..., dict[str, Array]]:
  """Measures what each input map contributes to each feature map, by position.

  size_mn = mean_batch |I_m * K_mn|, inside and outside of the areas

  Args:
    apply: runs a flax linen module, such as `model.apply`.
    areas: the areas of the network, as in `with_areas`; they determine the inputs of
      the convolutions that follow.

  Returns:
    A function `(*args, **kwargs)` like `apply`. It returns a dict from the path of each
    convolution that has an area to float (out height, out width, channels, features),
    which `prune_areas` takes.

  References:
    Dai, Yin & Jha 2017 (arXiv 1711.02017), section 3.4.

  Example:
    >>> model = nn.Conv(1, (1, 1), use_bias=False)
    >>> variables = {"params": {"kernel": jnp.full((1, 1, 1, 1), 2.0)}}
    >>> x = jnp.array([[1.0, 3.0], [-5.0, 7.0]])[None, ..., None]
    >>> measure = area_contributions(model.apply, whole_areas(model, (2, 2, 1)))
    >>> measure(variables, x)[""][..., 0, 0]
    Array([[ 2.,  6.],
           [10., 14.]], dtype=float32)
  """

  def measure(*args, **kwargs):
    found = {}

    def record(name, x, kernel, **windows):
      found[name] = _mean_sizes(x, kernel, **windows)

    _with_areas(apply, areas, record)(*args, **kwargs)
    return found

  return measure


def multiply_adds_removed(areas: PyTree, live: PyTree, chain: tuple[Layer, ...]) -> int:
  """Counts the multiply-adds of one image that the areas save.

  sum_mn live_mn (positions - area_mn), over all convolutions

  Args:
    areas: the areas of the network, as in `with_areas`.
    live: tree of bool arrays at the kernels, such as the masks.
    chain: the layers, from `growth.layers`.

  Returns:
    The number for one image, computed on the host.

  References:
    Dai, Yin & Jha 2017 (arXiv 1711.02017), section 3.4.

  Example:
    >>> chain = (Layer(("a",), (1, 1, 1, 1), 1, 4),)
    >>> area = jnp.array([[True, False], [True, True]])[..., None, None]
    >>> live = {"a": {"kernel": jnp.ones((1, 1, 1, 1), bool)}}
    >>> multiply_adds_removed({"a": area}, live, chain)
    1
  """
  saved, known = 0, dict(named_leaves(areas))
  for layer in chain:
    if (area := known.get("/".join(layer.path))) is None:
      continue
    weights = np.asarray(get(live, layer.path)).sum((0, 1), dtype=np.int64)
    dead = layer.uses - np.asarray(area).sum((0, 1), dtype=np.int64)
    saved += int((weights * dead).sum())
  return saved


def _with_areas(apply, areas, observe=lambda name, x, kernel, **windows: None):
  """See `with_areas`; `observe` is called with each convolution's name and inputs."""
  known = dict(named_leaves(areas))

  def apply_with_areas(*args, **kwargs):
    def intercept(next_function, inner_args, inner_kwargs, context):
      name = "/".join(context.module.path)
      if context.method_name != "__call__" or name not in known:
        return next_function(*inner_args, **inner_kwargs)
      # Compute the partial-area convolution with the module's own parameters.
      module, windows = context.module, _windows(name, context.module)
      kernel = module.get_variable("params", "kernel")
      bias = module.get_variable("params", "bias") if module.use_bias else None
      x, kernel, bias = promote_dtype(inner_args[0], kernel, bias, dtype=module.dtype)
      observe(name, x, kernel, **windows)
      y = partial_area_conv(x, kernel, known[name], **windows)
      return y if bias is None else y + bias[None, None, None]

    with nn.intercept_methods(intercept):
      return apply(*args, **kwargs)

  return apply_with_areas


def _windows(name: str, module: nn.Module) -> dict[str, Any]:
  """Returns the strides and the padding of a convolution, which must have no more."""
  if not hasattr(module, "padding") or hasattr(module, "transpose_kernel"):
    raise ValueError(
      f"areas must be at convolutions, got {type(module).__name__} at {name!r}."
    )
  names = ("input_dilation", "kernel_dilation", "feature_group_count")
  values = {key: getattr(module, key, 1) for key in names}
  odd = {key: value for key, value in values.items() if np.any(np.array(value) != 1)}
  if getattr(module, "mask", None) is not None:
    odd["mask"] = "an array"
  if module.padding in ("CIRCULAR", "CAUSAL", "REFLECT"):
    odd["padding"] = module.padding
  if odd:
    raise ValueError(
      "areas must be at convolutions without dilation, groups and a mask, with padding "
      f"by zeros, got {odd} at {name!r}."
    )
  strides, padding = module.strides or 1, module.padding
  if isinstance(strides, int):
    strides = (strides, strides)
  if not isinstance(padding, str):
    both = (padding, padding) if isinstance(padding, int) else padding
    padding = [(p, p) if isinstance(p, int) else tuple(p) for p in both]
  return {"strides": tuple(strides), "padding": padding}
