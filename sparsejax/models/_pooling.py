"""Max pooling for images that is fast on CPUs too.

On CPUs the gradient of `lax.reduce_window` (select-and-scatter) is slow. Here the
forward pass saves, for each window, the index of its first maximum, and the gradient is
routed there. This is the rule of `lax.reduce_window`, by comparisons alone.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax.core import check_arrays
from sparsejax.models._conv import Lowering, Padding, explicit_padding


def max_pool(
  x: jax.Array,
  window: tuple[int, int] = (2, 2),
  *,
  strides: tuple[int, int] | None = None,
  padding: Padding = "VALID",
  lowering: Lowering | Callable[..., jax.Array] = "auto",
) -> jax.Array:
  """Takes the maximum of each window, per channel.

  y[n, i, j, c] = max_{a, b} x[n, s i + a, s j + b, c]

  Of equal elements the first, row by row, receives the gradient.

  Args:
    x: (n, height, width, channels), floating.
    window: height and width of a window.
    strides: steps between windows; None uses the window's size.
    padding: "SAME", "VALID", or ((top, bottom), (left, right)); padded with -inf.
    lowering: "slices", "lax" or "auto", as for `sparsejax.models.conv2d`; a
      function for convolutions (see `sparsejax.models.Conv`) counts as "auto".

  Returns:
    (n, out height, out width, channels), of x's dtype.

  Raises:
    ValueError: x is not a batch of images, or `lowering` is unknown.

  Example:
    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0]
    Array([[ 5.,  7.],
           [13., 15.]], dtype=float32)
  """
  check_arrays("x", x)
  if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      "max_pool takes floating x of shape (n, h, w, c); "
      f"got {x.dtype} of shape {x.shape}."
    )
  strides = window if strides is None else strides
  pads = explicit_padding(x.shape[1:3], window, strides, padding)
  if callable(lowering):
    lowering = "auto"
  if lowering == "lax":
    return _lax_pool(x, tuple(window), tuple(strides), pads)
  if lowering not in ("auto", "slices"):
    raise ValueError(f"lowering must be 'auto', 'slices' or 'lax'; got {lowering!r}.")
  return _pool(x, tuple(window), tuple(strides), pads, lowering == "auto")


def _lax_pool(x, window, strides, pads):
  lowest = np.array(-np.inf, x.dtype)
  return lax.reduce_window(
    x, lowest, lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), *pads, (0, 0))
  )


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _pool(x, window, strides, pads, by_platform):
  return _pool_fwd(x, window, strides, pads, by_platform)[0]


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _pool_fwd(x, window, strides, pads, by_platform):
  slices = partial(_slices_pool, window=window, strides=strides, pads=pads)
  if not by_platform:
    y, first = slices(x)
    return y, (x, first)

  def other(x):
    # On other platforms the gradient is XLA's own and needs x alone.
    y = _lax_pool(x, window, strides, pads)
    return y, jnp.zeros_like(y, jnp.int32).transpose(3, 1, 2, 0)

  y, first = lax.platform_dependent(x, cpu=slices, default=other)
  return y, (x, first)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _pool_bwd(window, strides, pads, by_platform, residuals, dy):
  def lax_bwd(x, first, dy):
    del first
    pool = partial(_lax_pool, window=window, strides=strides, pads=pads)
    return jax.vjp(pool, x)[1](dy)[0]

  slices_bwd = partial(_slices_pool_bwd, window=window, strides=strides, pads=pads)
  x, first = residuals
  if not by_platform:
    return (slices_bwd(x, first, dy),)
  dx = lax.platform_dependent(x, first, dy, cpu=slices_bwd, default=lax_bwd)
  return (dx,)


_pool.defvjp(_pool_fwd, _pool_bwd)


def _slices_pool(x, window, strides, pads):
  """Returns the maxima, and the index of each window's first maximum, (c, h, w, n)."""
  lowest = jnp.array(-jnp.inf, x.dtype)
  wide = lax.pad(x, lowest, ((0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)))
  views = _views(wide.transpose(3, 1, 2, 0), window, strides)
  best, first = views[0], jnp.zeros(views[0].shape, jnp.int32)
  for k, view in enumerate(views[1:], 1):
    first = jnp.where(view > best, jnp.int32(k), first)
    best = jnp.maximum(best, view)
  return best.transpose(3, 1, 2, 0), first


def _slices_pool_bwd(x, first, dy, window, strides, pads):
  (kh, kw), (sh, sw) = window, strides
  dy = dy.transpose(3, 1, 2, 0)
  zero = jnp.zeros((), dy.dtype)
  parts = [jnp.where(first == k, dy, zero) for k in range(kh * kw)]
  c, oh, ow, n = dy.shape
  height, width = (x.shape[a + 1] + sum(pads[a]) for a in range(2))
  # Windows do not overlap: interleave the parts, one axis at a time, because explicit
  # sharding does not support reshaping both at once.
  if (sh, sw) == (kh, kw):
    # One axis at a time: sharding in types does not see through both at once.
    rows = [
      jnp.stack(parts[i * kw : (i + 1) * kw], 3).reshape(c, oh, ow * kw, n)
      for i in range(kh)
    ]
    dx = jnp.stack(rows, 2).reshape(c, oh * kh, ow * kw, n)
    rest = (height - oh * kh, width - ow * kw)
    dx = lax.pad(dx, zero, ((0, 0, 0), *((0, r, 0) for r in rest), (0, 0, 0)))
  else:
    # Windows overlap or leave gaps: add each part at its positions.
    dx = jnp.zeros((c, height, width, n), dy.dtype)
    for k, part in enumerate(parts):
      i, j = divmod(k, kw)
      high = (height - i - sh * (oh - 1) - 1, width - j - sw * (ow - 1) - 1)
      spread = ((0, 0, 0), (i, high[0], sh - 1), (j, high[1], sw - 1), (0, 0, 0))
      dx += lax.pad(part, zero, spread)
  crop = ((0, 0, 0), *((-low, -high, 0) for low, high in pads), (0, 0, 0))
  return lax.pad(dx.transpose(3, 1, 2, 0), zero, crop)


def _views(image, window, strides):
  """Returns element k of every window, for each k, row by row: (c, out h, out w, n)."""
  (kh, kw), (sh, sw) = window, strides
  c, h, w, n = image.shape
  oh, ow = (h - kh) // sh + 1, (w - kw) // sw + 1
  limits = (sh * (oh - 1) + 1, sw * (ow - 1) + 1)
  return [
    lax.slice(image, (0, i, j, 0), (c, i + limits[0], j + limits[1], n), (1, sh, sw, 1))
    for i in range(kh)
    for j in range(kw)
  ]
