"""AlexNet for ImageNet, in one tower."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from sparsejax.models._conv import Lowering
from sparsejax.models._initialization import Initialization, torch_uniform
from sparsejax.models._layers import Conv
from sparsejax.models._pooling import max_pool

# Kernel size, stride, padding, and whether max pooling of 3 x 3 at stride 2 follows.
_CONVOLUTIONS = (
  (11, 4, 0, True),
  (5, 1, 2, True),
  (3, 1, 1, False),
  (3, 1, 1, False),
  (3, 1, 1, True),
)


class ImageNetAlexNet(nn.Module):
  """AlexNet with five convolutions and three dense layers (Krizhevsky et al. 2012).

  The network is one tower (Krizhevsky 2014 without the narrower layers), because growth
  needs a chain of layers; Caffe's two groups can be expressed as a mask on it. There is
  no local response normalization. For 227 x 227 images of three channels and 1,000
  classes the kernels have 62,367,776 weights, of which 60,954,656 are within Caffe's
  groups.

  Attributes:
    num_classes: number of logits.
    initialization: a function from a layer's fan-in to its initializers.
    lowering: see `sparsejax.models.conv2d`.
    features: output features of the five convolutions and the two hidden dense layers.

  Example:
    >>> images = jax.ShapeDtypeStruct((1, 227, 227, 3), "float32")
    >>> variables = jax.eval_shape(ImageNetAlexNet().init, jax.random.key(0), images)
    >>> variables["params"]["dense1"]["kernel"].shape
    (9216, 4096)
  """

  num_classes: int = 1000
  initialization: Initialization = torch_uniform
  lowering: Lowering = "auto"
  features: Sequence[int] = (96, 256, 384, 384, 256, 4096, 4096)

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps images (n, height, width, channels) to logits (n, num_classes)."""
    if len(self.features) != 7:
      raise ValueError(f"features must contain 7 widths; got {len(self.features)}.")
    for i, (size, stride, border, pool) in enumerate(_CONVOLUTIONS, 1):
      kernel_init, bias_init = self.initialization(size**2 * x.shape[-1])
      x = Conv(
        self.features[i - 1],
        kernel_size=(size, size),
        strides=stride,
        padding=((border, border), (border, border)),
        kernel_init=kernel_init,
        bias_init=bias_init,
        lowering=self.lowering,
        name=f"conv{i}",
      )(x)
      if pool:
        x = max_pool(x, (3, 3), strides=(2, 2), lowering=self.lowering)
      x = nn.relu(x)
    x = x.reshape(x.shape[0], -1)
    for i, features in enumerate((*self.features[5:], self.num_classes), 1):
      x = nn.relu(x) if i > 1 else x
      kernel_init, bias_init = self.initialization(x.shape[-1])
      x = nn.Dense(
        features, kernel_init=kernel_init, bias_init=bias_init, name=f"dense{i}"
      )(x)
    return x
