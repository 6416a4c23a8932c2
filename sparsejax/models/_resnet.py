"""Residual networks: ResNet-20 for CIFAR, ResNet-50 for ImageNet (He et al. 2016)."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax

from sparsejax.models._conv import Lowering
from sparsejax.models._initialization import Initialization, he_normal_fan_out
from sparsejax.models._layers import residual_conv
from sparsejax.models._pooling import max_pool


class ResNet(nn.Module):
  """Stages of residual blocks, each with twice the features at half the size.

  y = relu(shortcut(x) + F(x)), with F two 3 x 3 convolutions, or with `bottleneck` a
  1 x 1, a 3 x 3 (which has the stride, as in PyTorch) and a 1 x 1 to four times the
  features. A shortcut that changes its shape is a 1 x 1 convolution.

  Attributes:
    blocks: number of blocks per stage.
    features: features of the first stage's 3 x 3 convolutions.
    bottleneck: whether blocks are bottlenecks.
    stem: "cifar" (3 x 3) or "imagenet" (7 x 7 at a stride of 2, and max pooling).
    num_classes: number of logits.
    initialization: a function from a layer's fan-in to its initializers.
    lowering: see `sparsejax.models.Conv`.
  """

  blocks: tuple[int, ...]
  features: int
  bottleneck: bool
  stem: str
  num_classes: int = 10
  initialization: Initialization = he_normal_fan_out
  lowering: Lowering | Callable[..., jax.Array] = "auto"

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps images (n, height, width, channels) to logits (n, num_classes)."""
    large = self.stem == "imagenet"
    size, strides = (7, 2) if large else (3, 1)
    x = residual_conv(self, self.features, x, size, strides, "conv1")(x)
    norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm1")
    x = nn.relu(norm(x))
    if large:
      one = (1, 1)
      x = max_pool(
        x, (3, 3), strides=(2, 2), padding=(one, one), lowering=self.lowering
      )
    for stage, blocks in enumerate(self.blocks):
      for block in range(blocks):
        x = _Block(
          self.features * 2**stage,
          strides=2 if stage and not block else 1,
          bottleneck=self.bottleneck,
          initialization=self.initialization,
          lowering=self.lowering,
          name=f"stage{stage + 1}_block{block + 1}",
        )(x, train)
    x = x.mean((1, 2))
    kernel_init, bias_init = self.initialization(x.shape[-1])
    return nn.Dense(
      self.num_classes, kernel_init=kernel_init, bias_init=bias_init, name="dense1"
    )(x)


def ResNet20(
  num_classes: int = 10,
  initialization: Initialization = he_normal_fan_out,
  lowering: Lowering | Callable[..., jax.Array] = "auto",
) -> ResNet:
  """Creates ResNet-20 for CIFAR; the lottery ticket papers call it ResNet-18.

  For images of three channels and 10 classes it has 272,474 parameters.

  Args:
    num_classes: number of logits.
    initialization: a function from a layer's fan-in to its initializers.
    lowering: see `sparsejax.models.Conv`.

  Returns:
    A `ResNet`.

  Example:
    >>> ResNet20().blocks
    (3, 3, 3)
  """
  return ResNet((3, 3, 3), 16, False, "cifar", num_classes, initialization, lowering)


def ResNet50(
  num_classes: int = 1000,
  initialization: Initialization = he_normal_fan_out,
  lowering: Lowering | Callable[..., jax.Array] = "auto",
) -> ResNet:
  """Creates ResNet-50 for ImageNet, version 1.5.

  For 1,000 classes it has 25,557,032 parameters, 25,502,912 of them in kernels.

  Args:
    num_classes: number of logits.
    initialization: a function from a layer's fan-in to its initializers.
    lowering: see `sparsejax.models.Conv`.

  Returns:
    A `ResNet`.

  Example:
    >>> ResNet50().num_classes
    1000
  """
  blocks = (3, 4, 6, 3)
  return ResNet(blocks, 64, True, "imagenet", num_classes, initialization, lowering)


class _Block(nn.Module):
  features: int
  strides: int
  bottleneck: bool
  initialization: Initialization
  lowering: Lowering | Callable[..., jax.Array]

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
    f, s = self.features, self.strides
    # Features, kernel size and stride of each convolution.
    convolutions = ((f, 3, s), (f, 3, 1))
    if self.bottleneck:
      convolutions = ((f, 1, 1), (f, 3, s), (4 * f, 1, 1))
    y = x
    for i, (features, size, strides) in enumerate(convolutions, 1):
      y = nn.relu(y) if i > 1 else y
      y = residual_conv(self, features, y, size, strides, f"conv{i}")(y)
      y = norm(name=f"norm{i}")(y)
    if x.shape != y.shape:
      x = residual_conv(self, y.shape[-1], x, 1, s, "shortcut")(x)
      x = norm(name="shortcut_norm")(x)
    return nn.relu(x + y)
