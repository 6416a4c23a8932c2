"""Wide residual networks (Zagoruyko and Komodakis 2016)."""

from functools import partial

import flax.linen as nn
import jax

from sparsejax.models._conv import Lowering
from sparsejax.models._initialization import Initialization, he_normal_fan_out
from sparsejax.models._layers import residual_conv


class WideResNet(nn.Module):
  """WRN-depth-width: three stages of blocks with normalization before each convolution.

  y = shortcut(x) + conv2(dropout(relu(norm(conv1(relu(norm(x)))))))

  Stages have 16, 32 and 64 times `width` features and (depth - 4) / 6 blocks each. For
  images of three channels and 10 classes WRN-16-8, 22-8, 28-2 and 28-10 have
  10,961,370, 17,158,106, 1,467,610 and 36,479,194 parameters.

  Attributes:
    depth: 6 n + 4 for n blocks per stage, as the paper counts.
    width: factor on the features.
    num_classes: number of logits.
    dropout: dropout rate within a block; 0.3 in the papers on sparse training.
    initialization: a function from a layer's fan-in to its initializers.
    lowering: see `sparsejax.models.conv2d`.

  Example:
    >>> import jax.numpy as jnp
    >>> images = jnp.ones((1, 32, 32, 3))
    >>> variables = jax.eval_shape(WideResNet(16, 8).init, jax.random.key(0), images)
    >>> variables["params"]["stage3_block2"]["conv2"]["kernel"].shape
    (3, 3, 512, 512)
  """

  depth: int = 28
  width: int = 2
  num_classes: int = 10
  dropout: float = 0.0
  initialization: Initialization = he_normal_fan_out
  lowering: Lowering = "auto"

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps images (n, height, width, channels) to logits (n, num_classes)."""
    if self.depth < 10 or (self.depth - 4) % 6 or self.width < 1:
      raise ValueError(
        "depth must be 10, 16, 22, 28, ... and width at least 1; "
        f"got {self.depth} and {self.width}."
      )
    x = residual_conv(self, 16, x, 3, 1, "conv1")(x)
    for stage in range(3):
      for block in range((self.depth - 4) // 6):
        x = _Block(
          16 * self.width * 2**stage,
          strides=2 if stage and not block else 1,
          dropout=self.dropout,
          initialization=self.initialization,
          lowering=self.lowering,
          name=f"stage{stage + 1}_block{block + 1}",
        )(x, train)
    norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm1")
    x = nn.relu(norm(x)).mean((1, 2))
    kernel_init, bias_init = self.initialization(x.shape[-1])
    return nn.Dense(
      self.num_classes, kernel_init=kernel_init, bias_init=bias_init, name="dense1"
    )(x)


class _Block(nn.Module):
  features: int
  strides: int
  dropout: float
  initialization: Initialization
  lowering: Lowering

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
    ready = nn.relu(norm(name="norm1")(x))
    if x.shape[-1] != self.features:
      x = residual_conv(self, self.features, ready, 1, self.strides, "shortcut")(ready)
    y = residual_conv(self, self.features, ready, 3, self.strides, "conv1")(ready)
    y = nn.relu(norm(name="norm2")(y))
    y = nn.Dropout(self.dropout, deterministic=not train)(y)
    return x + residual_conv(self, self.features, y, 3, 1, "conv2")(y)
