"""VGG16-C, VGG16-D and VGG-like for CIFAR, as in papers on sparse training."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import flax.linen as nn
import jax

from sparsejax.models._conv import Lowering
from sparsejax.models._initialization import Initialization, torch_uniform
from sparsejax.models._layers import Conv
from sparsejax.models._pooling import max_pool

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # features, convolutions


class VGG16(nn.Module):
  """VGG-16 with batch normalization and dense layers of 512 (Lee et al. 2019).

  Version "c" has a 1 x 1 kernel as the third convolution of its last three stages, with
  the same padding of one as the 3 x 3 kernels, as in sparse momentum's code (which is
  why it has 0.8M more weights than SNIP's); "d" has two hidden dense layers, "like" has
  one. For 32 x 32 images of three channels and 10 classes the kernels have 11,307,712
  (c), 15,239,872 (d) and 14,977,728 weights (like).

  Attributes:
    version: "c", "d" or "like".
    num_classes: number of logits.
    initialization: a function from a layer's fan-in to its initializers; the default is
      PyTorch's, as in the results of Dettmers and Zettlemoyer (2019).
    lowering: see `sparsejax.models.conv2d`.
    features: output features of the 13 convolutions and the hidden dense layers,
      instead of the version's own.

  Example:
    >>> import jax.numpy as jnp
    >>> images = jnp.ones((1, 32, 32, 3))
    >>> variables = jax.eval_shape(VGG16("c").init, jax.random.key(0), images)
    >>> variables["params"]["dense1"]["kernel"].shape
    (2048, 512)
  """

  version: Literal["c", "d", "like"] = "d"
  num_classes: int = 10
  initialization: Initialization = torch_uniform
  lowering: Lowering = "auto"
  features: Sequence[int] | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps images (n, height, width, channels) to logits (n, num_classes)."""
    if self.version not in ("c", "d", "like"):
      raise ValueError(f"version must be 'c', 'd' or 'like'; got {self.version!r}.")
    hidden = (512,) if self.version == "like" else (512, 512)
    widths = [width for width, convolutions in _STAGES for _ in range(convolutions)]
    widths = tuple(self.features or (*widths, *hidden))
    if len(widths) != 13 + len(hidden):
      raise ValueError(
        f"features must contain {13 + len(hidden)} widths for version "
        f"{self.version!r}; got {len(widths)}."
      )
    # Five stages of convolutions, each followed by max pooling.
    norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
    index = 0
    for _, convolutions in _STAGES:
      for i in range(convolutions):
        index += 1
        size = 1 if self.version == "c" and i == 2 else 3
        kernel_init, bias_init = self.initialization(size**2 * x.shape[-1])
        x = Conv(
          widths[index - 1],
          kernel_size=(size, size),
          padding=((1, 1), (1, 1)),
          kernel_init=kernel_init,
          bias_init=bias_init,
          lowering=self.lowering,
          name=f"conv{index}",
        )(x)
        x = nn.relu(norm(name=f"norm{index}")(x))
      x = max_pool(x, lowering=self.lowering)
    # Dense layers; the hidden ones are normalized after ReLU.
    x = x.reshape(x.shape[0], -1)
    for i, features in enumerate((*widths[13:], self.num_classes), 1):
      if i > 1:
        x = norm(name=f"norm{index + i - 1}")(nn.relu(x))
      kernel_init, bias_init = self.initialization(x.shape[-1])
      x = nn.Dense(
        features, kernel_init=kernel_init, bias_init=bias_init, name=f"dense{i}"
      )(x)
    return x
