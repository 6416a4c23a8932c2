"""AlexNet-s and AlexNet-b for CIFAR, as in papers on sparse training."""

from functools import partial
from typing import Literal

import flax.linen as nn
import jax

from sparsejax.models._conv import Lowering
from sparsejax.models._initialization import Initialization, torch_uniform
from sparsejax.models._layers import Conv

# Features, kernel size, and padding of each convolution; all have a stride of two.
_CONVOLUTIONS = ((96, 11, 2), (256, 5, 2), (384, 3, 1), (384, 3, 1), (256, 3, 1))


class AlexNet(nn.Module):
  """AlexNet with strides instead of pooling, and with batch normalization.

  Its hidden dense layers have 1,024 units ("s") or 2,048 ("b"), where the original has
  4,096 (Lee et al. 2019). For 32 x 32 images of three channels and 10 classes the
  kernels have 5,066,784 (s) and 8,484,896 weights (b).

  Attributes:
    size: "s" or "b".
    num_classes: number of logits.
    initialization: a function from a layer's fan-in to its initializers; the default is
      PyTorch's, as in the results of Dettmers and Zettlemoyer (2019).
    lowering: see `sparsejax.models.conv2d`.

  Example:
    >>> import jax.numpy as jnp
    >>> images = jnp.ones((1, 32, 32, 3))
    >>> variables = jax.eval_shape(AlexNet("b").init, jax.random.key(0), images)
    >>> variables["params"]["dense1"]["kernel"].shape
    (256, 2048)
  """

  size: Literal["s", "b"] = "s"
  num_classes: int = 10
  initialization: Initialization = torch_uniform
  lowering: Lowering = "auto"

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps images (n, height, width, channels) to logits (n, num_classes)."""
    if self.size not in ("s", "b"):
      raise ValueError(f"size must be 's' or 'b'; got {self.size!r}.")
    norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
    for i, (features, size, border) in enumerate(_CONVOLUTIONS, 1):
      kernel_init, bias_init = self.initialization(size**2 * x.shape[-1])
      x = Conv(
        features,
        kernel_size=(size, size),
        strides=2,
        padding=((border, border), (border, border)),
        kernel_init=kernel_init,
        bias_init=bias_init,
        lowering=self.lowering,
        name=f"conv{i}",
      )(x)
      x = nn.relu(norm(name=f"norm{i}")(x))
    x = x.reshape(x.shape[0], -1)
    width = 1024 if self.size == "s" else 2048
    for i, features in enumerate((width, width, self.num_classes), 1):
      kernel_init, bias_init = self.initialization(x.shape[-1])
      x = nn.Dense(
        features, kernel_init=kernel_init, bias_init=bias_init, name=f"dense{i}"
      )(x)
      x = nn.relu(norm(name=f"norm{i + 5}")(x)) if i < 3 else x
    return x
