"""A scan over thousands of equal convolutional layers that is fast on CPUs too.

On CPUs, XLA's gradient of a convolution inside a loop is twenty times slower than
necessary. Here a layer is one product of all pixels with all taps, whose slices are
then shifted and added; its gradient shifts first and takes two products. The stack has
a custom VJP and saves only pre-activations. On other platforms the same stack uses
XLA's convolution, chosen when a program is lowered (`jax.lax.platform_dependent`).

Internally images are (height, width, n, channels), so that a shift moves long rows.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.models._conv import Lowering, _as_cotangent

Array = jax.Array
Activation = Callable[[Array], Array]
Padding = Literal["zero", "circular"]
Remat = Literal["none", "sqrt"]

_HWNC = ("HWNC", "HWIO", "HWNC")


def conv_stack(
  x: Array,
  kernel: Array,
  bias: Array,
  activation: Activation = jnp.tanh,
  *,
  padding: Padding = "zero",
  lowering: Lowering = "auto",
  remat: Remat = "none",
  unroll: int = 1,
) -> Array:
  """Applies L convolutional layers one after another.

  x_l = activation(conv(x_{l-1}, W_l) + b_l),  l = 1 ... L

  Compile time does not depend on L. Without remat, a gradient saves the L
  pre-activations; with "sqrt" about 2 sqrt(L) of them, for one more forward pass.

  Args:
    x: (n, height, width, c), floating.
    kernel: (L, kh, kw, c, c) of x's dtype; kh and kw odd.
    bias: (L, c) of x's dtype.
    activation: elementwise; a named function, because it is a key of jit's cache.
    padding: "zero" or "circular".
    lowering: "slices" (products and shifts), "lax" (XLA's convolution and autodiff,
      which forward mode needs), or "auto": the former on CPUs, XLA's convolution under
      the same custom VJP elsewhere. Under `vmap` that is a grouped convolution, and
      "slices" was six times faster on a GPU.
    remat: "none" or "sqrt".
    unroll: layers per step of the loop; more than one seldom pays.

  Returns:
    (n, height, width, c), of x's dtype.

  Raises:
    ValueError: shapes or dtypes do not fit, or an option is unknown.

  Example:
    >>> x, kernel = jnp.ones((1, 4, 4, 2)), jnp.zeros((5, 3, 3, 2, 2))
    >>> conv_stack(x, kernel.at[:, 1, 1].set(jnp.eye(2)[None]), jnp.zeros((5, 2))).shape
    (1, 4, 4, 2)
  """
  _check(x, kernel, bias, padding, lowering, remat, unroll)
  options = padding, lowering, unroll
  run: Any = partial(_run, activation=activation, options=options)
  h = x.transpose(1, 2, 0, 3)
  if remat == "none":
    return run(h, kernel, bias).transpose(2, 0, 1, 3)
  # Checkpoint chunks of about sqrt(L) layers; the layers that fill no chunk come last.
  depth = kernel.shape[0]
  chunk = max(1, math.isqrt(depth))
  whole = depth // chunk * chunk
  run = jax.checkpoint(run)
  chunks = [a[:whole].reshape(-1, chunk, *a.shape[1:]) for a in (kernel, bias)]
  h, _ = lax.scan(lambda h, layers: (run(h, *layers), None), h, tuple(chunks))
  if whole < depth:
    h = run(h, kernel[whole:], bias[whole:])
  return h.transpose(2, 0, 1, 3)


def conv_layer(
  x: Array,
  kernel: Array,
  bias: Array,
  activation: Activation = jnp.tanh,
  *,
  padding: Padding = "zero",
) -> Array:
  """Applies one layer of `conv_stack` by products and shifts, for any kind of autodiff.

  y = activation(conv(x, W) + b)

  Args:
    x: (n, height, width, c), floating.
    kernel: (kh, kw, c, c) of x's dtype.
    bias: (c,) of x's dtype.
    activation: elementwise.
    padding: "zero" or "circular".

  Returns:
    (n, height, width, c).

  Example:
    >>> x, kernel = jnp.ones((1, 2, 2, 1)), jnp.ones((3, 3, 1, 1))
    >>> conv_layer(x, kernel, jnp.zeros(1), jnp.abs)[0, :, :, 0]
    Array([[4., 4.],
           [4., 4.]], dtype=float32)
  """
  z = _slices(x.transpose(1, 2, 0, 3), kernel, bias, padding)
  return activation(z).transpose(2, 0, 1, 3)


def _check(x, kernel, bias, padding, lowering, remat, unroll):
  c = x.shape[-1]
  if x.ndim != 4 or kernel.ndim != 5 or kernel.shape[3:] != (c, c):
    raise ValueError(
      "conv_stack takes x of shape (n, h, w, c) and a kernel of shape "
      f"(L, kh, kw, c, c); got {x.shape} and {kernel.shape}."
    )
  if bias.shape != (kernel.shape[0], c):
    raise ValueError(f"bias must be of shape {(kernel.shape[0], c)}; got {bias.shape}.")
  if not all(k % 2 for k in kernel.shape[1:3]):
    raise ValueError(f"the kernel's height and width must be odd; got {kernel.shape}.")
  dtypes = {a.dtype for a in (x, kernel, bias)}
  if len(dtypes) > 1 or not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      "x, kernel and bias must be of one floating dtype; "
      f"got {sorted(map(str, dtypes))}."
    )
  for name, value, known in (
    ("padding", padding, ("zero", "circular")),
    ("lowering", lowering, ("auto", "slices", "lax")),
    ("remat", remat, ("none", "sqrt")),
  ):
    if value not in known:
      raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}.")
  if unroll < 1:
    raise ValueError(f"unroll must be at least 1; got {unroll}.")


def _run(h, kernel, bias, activation, options):
  padding, lowering, unroll = options
  if lowering != "lax":
    return _stack(h, kernel, bias, activation, options)

  def layer(h, weights):
    return activation(_lax(h, *weights, padding=padding)), None

  return lax.scan(layer, h, (kernel, bias), unroll=unroll)[0]


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _stack(h, kernel, bias, activation, options):
  return _by_platform(_forward, activation, options, save=False)(h, kernel, bias)[0]


def _stack_fwd(h, kernel, bias, activation, options):
  forward = _by_platform(_forward, activation, options, save=True)
  y, z = forward(h, kernel, bias)
  return y, (h, kernel, bias, z)


def _stack_bwd(activation, options, residuals, dy):
  grads = _by_platform(_backward, activation, options)(*residuals, dy)
  return tuple(_as_cotangent(g, p) for g, p in zip(grads, residuals[:3], strict=True))


_stack.defvjp(_stack_fwd, _stack_bwd)


def _by_platform(f, activation, options, **kwargs):
  """Binds the layer of the platform to `f(layer, layer_vjp, ...)`."""
  padding, lowering, unroll = options
  kwargs = {"activation": activation, "unroll": unroll, **kwargs}

  def with_layer(forward, backward):
    parts = (partial(part, padding=padding) for part in (forward, backward))
    return partial(f, *parts, **kwargs)

  slices = with_layer(_slices, _slices_vjp)
  if lowering == "slices":
    return slices
  other = with_layer(_lax, _lax_vjp)
  return lambda *args: lax.platform_dependent(*args, cpu=slices, default=other)


def _forward(layer, layer_vjp, h, kernel, bias, *, activation, unroll, save):
  del layer_vjp

  def step(h, weights):
    z = layer(h, *weights)
    return activation(z), z if save else None

  return lax.scan(step, h, (kernel, bias), unroll=unroll)


def _backward(layer, layer_vjp, h, kernel, bias, z, dy, *, activation, unroll):
  del layer, bias

  def step(carry, inputs):
    dz, _ = carry
    index, w = inputs
    # Slice the saved pre-activations inside the loop: passing them shifted by one layer
    # would copy all of them.
    before = lax.dynamic_index_in_dim(z, jnp.maximum(index - 1, 0), keepdims=False)
    x, pull = jax.vjp(activation, before)
    dx, dw = layer_vjp(jnp.where(index > 0, x, h), w, dz)
    return (pull(dx)[0], dx), (dw, jnp.sum(dz, (0, 1, 2)))

  last = jax.vjp(activation, z[-1])[1](dy)[0]
  layers = (jnp.arange(kernel.shape[0]), kernel)
  (_, dx), (dw, db) = lax.scan(
    step, (last, jnp.zeros_like(last)), layers, reverse=True, unroll=unroll
  )
  return dx, dw, db


def _offsets(kernel):
  """Returns the offset of each tap from the output's position, row by row."""
  kh, kw = kernel.shape[:2]
  return [(i - kh // 2, j - kw // 2) for i in range(kh) for j in range(kw)]


def _shift(x, offset, padding):
  """Shifts an image: y[i, j] = x[i + offset[0], j + offset[1]]."""
  if padding == "circular":
    return jnp.roll(x, (-offset[0], -offset[1]), (0, 1))
  zero = jnp.zeros((), x.dtype)
  pads = [(-d, d, 0) for d in offset] + [(0, 0, 0)] * (x.ndim - 2)
  return lax.pad(x, zero, pads)


def _dot(a, b, axes):
  # Half-precision products are accumulated in float32 and rounded once, as in XLA's
  # convolution.
  wide = jnp.float32 if a.dtype.itemsize < 4 else a.dtype
  y = lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=wide)
  return y.astype(a.dtype)


def _slices(h, kernel, bias, padding):
  taps = kernel.reshape(-1, *kernel.shape[2:])
  z = _dot(h, taps, ((3,), (1,)))  # (height, width, n, taps, c)
  shifted = [_shift(z[..., t, :], d, padding) for t, d in enumerate(_offsets(kernel))]
  return sum(shifted) + bias[None, None, None]


def _slices_vjp(h, kernel, dz, padding):
  taps = kernel.reshape(-1, *kernel.shape[2:])
  back = [_shift(dz, (-i, -j), padding) for i, j in _offsets(kernel)]
  dtaps = jnp.stack(back, 3)  # (height, width, n, taps, c)
  dh = _dot(dtaps, taps, ((3, 4), (0, 2)))
  dw = _dot(h, dtaps, ((0, 1, 2), (0, 1, 2)))  # (c, taps, c)
  return dh, dw.transpose(1, 0, 2).reshape(kernel.shape)


def _lax_conv(h, kernel, padding):
  pads = [(k // 2, k // 2) for k in kernel.shape[:2]]
  if padding == "circular":
    h, pads = jnp.pad(h, (*pads, (0, 0), (0, 0)), mode="wrap"), "VALID"
  return lax.conv_general_dilated(h, kernel, (1, 1), pads, dimension_numbers=_HWNC)


def _lax(h, kernel, bias, padding):
  return _lax_conv(h, kernel, padding) + bias[None, None, None]


def _lax_vjp(h, kernel, dz, padding):
  return jax.vjp(partial(_lax_conv, padding=padding), h, kernel)[1](dz)
