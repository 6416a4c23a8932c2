"""Layers like those of `flax.linen`, computed by this package's convolutions."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from sparsejax.models._conv import Lowering, Padding, conv2d

_NHWC = ("NHWC", "HWIO", "NHWC")


class Conv(nn.Module):
  """A `flax.linen.Conv` for images, computed by `conv2d`, which is fast on CPUs too.

  Its parameters are those of `flax.linen.Conv`: `kernel`, of shape (kernel height,
  kernel width, channels, features), and `bias`, of shape (features,).

  Attributes:
    features: number of output channels.
    kernel_size: height and width of the kernel.
    strides: steps between windows, down and across, or one for both.
    padding: "SAME", "VALID", or ((top, bottom), (left, right)).
    use_bias: whether to add a bias.
    dtype: dtype of the computation; None uses the promoted dtype of x and parameters.
    param_dtype: dtype of the parameters.
    kernel_init: initializer of the kernel.
    bias_init: initializer of the bias.
    lowering: see `conv2d`; or a function with the arguments of flax's
      `conv_general_dilated`, such as `sj.block_conv_general_dilated((64, 64))`.

  Example:
    >>> layer = Conv(features=8, kernel_size=(3, 3))
    >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 28, 28, 1)))
    >>> variables["params"]["kernel"].shape
    (3, 3, 1, 8)
  """

  features: int
  kernel_size: tuple[int, int]
  strides: int | tuple[int, int] = 1
  padding: Padding = "SAME"
  use_bias: bool = True
  dtype: Any = None
  param_dtype: Any = jnp.float32
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
  lowering: Lowering | Callable[..., jax.Array] = "auto"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (..., height, width, channels) to (..., out h, out w, features)."""
    strides = self.strides
    strides = (strides, strides) if isinstance(strides, int) else strides
    shape = (*self.kernel_size, x.shape[-1], self.features)
    kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
    bias = None
    if self.use_bias:
      bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
    x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
    batch = x.shape[:-3]
    images = x.reshape(-1, *x.shape[-3:]) if len(batch) != 1 else x
    if callable(self.lowering):
      y = self.lowering(images, kernel, strides, self.padding, dimension_numbers=_NHWC)
      y = y if bias is None else y + bias[None, None, None]
    else:
      y = conv2d(
        images,
        kernel,
        bias,
        strides=strides,
        padding=self.padding,
        lowering=self.lowering,
      )
    return y.reshape(*batch, *y.shape[1:]) if len(batch) != 1 else y


def plain_norm(train: bool, name: str) -> nn.BatchNorm:
  """Creates a batch normalization without parameters: neither scale nor shift.

  Args:
    train: whether to normalize by the batch's statistics or by running averages.
    name: name in its parent.

  Returns:
    The layer.
  """
  return nn.BatchNorm(
    use_running_average=not train,
    momentum=0.9,
    use_scale=False,
    use_bias=False,
    name=name,
  )


def residual_conv(
  parent: Any, features: int, x: jax.Array, size: int, strides: int, name: str
) -> Conv:
  """Creates a convolution of a residual network: no bias, output of x's size / strides.

  Args:
    parent: the module that it belongs to, which has `initialization` and `lowering`.
    features: number of output channels.
    x: its input, for the fan-in.
    size: height and width of the kernel, odd.
    strides: stride of both axes.
    name: name in the parent.

  Returns:
    The layer.
  """
  kernel_init, _ = parent.initialization(size**2 * x.shape[-1])
  border = (size // 2, size // 2)
  return Conv(
    features,
    kernel_size=(size, size),
    strides=strides,
    padding=(border, border),
    use_bias=False,
    kernel_init=kernel_init,
    lowering=parent.lowering,
    name=name,
  )
