"""A convolution for images that is fast on CPUs too.

XLA runs `lax.conv_general_dilated` and its gradients slowly on CPUs, and another five
times slower inside `lax.scan`. There, one matrix product with the image's patches is
faster. On other platforms XLA's own convolution is used. The choice is made when a
program is lowered (`jax.lax.platform_dependent`), so one traced function serves every
platform.

Three measures make the product fast, each found by benchmarks
(`scripts/benchmarks/convolution.py`):

- The batch is the minor axis, so each slice, sum and maximum runs along long rows.
- Patches are extracted in two stages, columns then rows, which are both concatenations.
- Their gradient adds slices in place; autodiff would add zero-padded images.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType

from sparsejax.core import check_arrays, check_tuple

Padding = str | Sequence[tuple[int, int]]
Lowering = Literal["auto", "slices", "lax"]

_NHWC = ("NHWC", "HWIO", "NHWC")
# The matrix product of XLA's CPU backend writes 16 floats at a time.
_LANES = 16


def conv2d(
  x: jax.Array,
  kernel: jax.Array,
  bias: jax.Array | None = None,
  *,
  strides: tuple[int, int] = (1, 1),
  padding: Padding = "SAME",
  lowering: Lowering = "auto",
) -> jax.Array:
  """Convolves images with a kernel, as `lax.conv_general_dilated` does.

  y[n, i, j, o] = bias[o] + sum_{a, b, c} x[n, s i + a, s j + b, c] kernel[a, b, c, o]

  Args:
    x: (n, height, width, channels), floating.
    kernel: (kernel height, kernel width, channels, features), of x's dtype.
    bias: (features,), of x's dtype, or None.
    strides: steps between windows, down and across.
    padding: "SAME", "VALID", or ((top, bottom), (left, right)).
    lowering: "slices" (patches and a matrix product), "lax" (XLA's convolution), or
      "auto": the former on CPUs, the latter elsewhere. Only "lax" can be
      differentiated in forward mode (`jax.jvp`, `jax.jacfwd`, `jax.hessian`); all can
      be differentiated in reverse mode any number of times.

  Returns:
    (n, out height, out width, features), of x's dtype.

  Raises:
    ValueError: shapes or dtypes do not fit, or `lowering` is unknown.

  Example:
    >>> x, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 2))
    >>> conv2d(x, kernel, padding="VALID")[0, :, :, 0]
    Array([[9., 9.],
           [9., 9.]], dtype=float32)
  """
  for name, value in (("x", x), ("kernel", kernel)):
    check_arrays(name, value)
  if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2]:
    raise ValueError(
      "conv2d takes x of shape (n, h, w, c) and a kernel of shape "
      f"(kh, kw, c, features); got {x.shape} and {kernel.shape}."
    )
  if bias is not None and bias.shape != kernel.shape[3:]:
    raise ValueError(f"bias must be of shape {kernel.shape[3:]}; got {bias.shape}.")
  dtypes = {a.dtype for a in (x, kernel, bias) if a is not None}
  if len(dtypes) > 1 or not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      "x, kernel and bias must be of one floating dtype; "
      f"got {sorted(map(str, dtypes))}."
    )
  pads = explicit_padding(x.shape[1:3], kernel.shape[:2], strides, padding)
  if lowering == "lax":
    return _lax_conv(x, kernel, bias, tuple(strides), pads)
  if lowering not in ("auto", "slices"):
    raise ValueError(f"lowering must be 'auto', 'slices' or 'lax'; got {lowering!r}.")
  return _conv(x, kernel, bias, tuple(strides), pads, lowering == "auto")


def explicit_padding(
  shape: tuple[int, ...],
  window: tuple[int, ...],
  strides: tuple[int, ...],
  padding: Padding,
) -> tuple[tuple[int, int], ...]:
  """Converts "SAME" and "VALID" to (low, high) per spatial axis."""
  for name, value in (("strides", strides), ("window", window)):
    check_tuple(name, value, 2)
  if isinstance(padding, str):
    if padding not in ("SAME", "VALID", "SAME_LOWER"):
      raise ValueError(f"padding must be 'SAME' or 'VALID' or pairs, got {padding!r}.")
    padding = lax.padtype_to_pads(shape, window, strides, padding)
  pads = tuple((int(low), int(high)) for low, high in padding)
  if any(n + sum(p) < k for n, p, k in zip(shape, pads, window, strict=True)):
    raise ValueError(
      f"a window of {window} does not fit into an image of {shape} padded by {pads}."
    )
  return pads


def _lax_conv(x, kernel, bias, strides, pads):
  y = lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=_NHWC)
  return y if bias is None else y + bias[None, None, None]


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
@partial(jax.jit, static_argnums=(3, 4, 5))
def _conv(x, kernel, bias, strides, pads, by_platform):
  slices = partial(_slices_conv, strides=strides, pads=pads)
  if not by_platform:
    return slices(x, kernel, bias)
  other = partial(_lax_conv, strides=strides, pads=pads)
  return lax.platform_dependent(x, kernel, bias, cpu=slices, default=other)


def _conv_fwd(x, kernel, bias, strides, pads, by_platform):
  y = _conv(x, kernel, bias, strides, pads, by_platform)
  return y, (x, kernel, bias)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _conv_bwd(strides, pads, by_platform, residuals, dy):
  def lax_bwd(x, kernel, bias, dy):
    conv = partial(_lax_conv, strides=strides, pads=pads)
    return jax.vjp(conv, x, kernel, bias)[1](dy)

  slices_bwd = partial(_slices_conv_bwd, strides=strides, pads=pads)
  x, kernel, bias = residuals
  if not by_platform:
    return slices_bwd(x, kernel, bias, dy)
  return lax.platform_dependent(x, kernel, bias, dy, cpu=slices_bwd, default=lax_bwd)


_conv.defvjp(_conv_fwd, _conv_bwd)


def _slices_conv(x, kernel, bias, strides, pads):
  kh, kw = kernel.shape[:2]
  y = _dot(kernel, _patches(_to_chwn(x, pads), kh, kw, strides), (0, 1, 2), (0, 1, 2))
  if bias is not None:
    y = y + bias[:, None, None, None]
  return y.transpose(3, 1, 2, 0)


def _slices_conv_bwd(x, kernel, bias, dy, strides, pads):
  """Computes the gradients of `_slices_conv` from patches, with three products."""
  kh, kw, _, features = kernel.shape
  image = _to_chwn(x, pads)
  dy = dy.transpose(3, 1, 2, 0)
  # XLA's product leaves its fast path if the minor axis of the result is not a multiple
  # of its lanes: padding 50 features to 64 takes 0.6x the time.
  extra = -features % _LANES
  sharding = _explicit_sharding(kernel)
  extra = extra if 3 * extra <= features and sharding is None else 0
  wide = lax.pad(dy, jnp.zeros((), dy.dtype), ((0, extra, 0), *[(0, 0, 0)] * 3))
  patches = _patches(image, kh, kw, strides)
  dkernel = _dot(patches, wide, (3, 4, 5), (1, 2, 3), sharding)
  dkernel = lax.slice_in_dim(dkernel, 0, features, axis=3)
  # The gradient of the image: that of its patches, added where each was taken from.
  dpatches = _dot(kernel, dy, (3,), (0,))
  dimage = _add_patches(dpatches, image, strides)
  dx = lax.pad(
    dimage.transpose(3, 1, 2, 0),
    jnp.zeros((), x.dtype),
    ((0, 0, 0), *((-low, -high, 0) for low, high in pads), (0, 0, 0)),
  )
  dbias = None if bias is None else dy.sum((1, 2, 3))
  return (
    _as_cotangent(dx, x),
    _as_cotangent(dkernel, kernel),
    _as_cotangent(dbias, bias),
  )


def _as_cotangent(grad, primal):
  """Sums a gradient over the `shard_map` axes along which its primal does not vary."""
  if primal is None:
    return None
  return jax.vjp(lambda p: p + grad, primal)[1](grad)[0]


def _explicit_sharding(array):
  """Returns an array's sharding if it is part of its type, else None."""
  sharding = jax.typeof(array).sharding
  explicit = AxisType.Explicit in sharding.mesh.axis_types
  return sharding if explicit else None


def _to_chwn(x, pads):
  zero = jnp.zeros((), x.dtype)
  wide = lax.pad(x, zero, ((0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)))
  return wide.transpose(3, 1, 2, 0)


def _dot(a, b, a_axes, b_axes, out_sharding=None):
  # Half-precision products are accumulated in float32 and rounded once, as in XLA's
  # convolution.
  out = jnp.float32 if a.dtype.itemsize < 4 else a.dtype
  y = lax.dot_general(
    a,
    b,
    ((a_axes, b_axes), ((), ())),
    preferred_element_type=out,
    out_sharding=out_sharding,
  )
  return y.astype(a.dtype)


def _out_size(size, window, stride):
  return (size - window) // stride + 1


def _patches(image, kh, kw, strides):
  """Extracts patches: (c, h, w, n) to (kh, kw, c, out h, out w, n)."""
  (sh, sw), (_, h, w, _) = strides, image.shape
  oh, ow = _out_size(h, kh, sh), _out_size(w, kw, sw)
  columns = [
    lax.slice_in_dim(image, j, j + sw * (ow - 1) + 1, sw, axis=2) for j in range(kw)
  ]
  rows = jnp.stack(columns)
  return jnp.stack(
    [lax.slice_in_dim(rows, i, i + sh * (oh - 1) + 1, sh, axis=2) for i in range(kh)]
  )


def _add_patches(patches, image, strides):
  """Transposes `_patches`: adds each patch element where it was taken from."""
  kh, kw, _, oh, ow, _ = patches.shape
  (sh, sw), (_, h, w, _) = strides, image.shape
  zero = jnp.zeros((), patches.dtype)
  total = jnp.zeros_like(image)
  for i in range(kh):
    for j in range(kw):
      if strides == (1, 1):
        total = total.at[:, i : i + oh, j : j + ow].add(patches[i, j])
        continue
      high = (h - i - sh * (oh - 1) - 1, w - j - sw * (ow - 1) - 1)
      spread = ((0, 0, 0), (i, high[0], sh - 1), (j, high[1], sw - 1), (0, 0, 0))
      total += lax.pad(patches[i, j], zero, spread)
  return total
