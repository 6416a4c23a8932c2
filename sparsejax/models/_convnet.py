"""Conv-2, Conv-4, Conv-6 and Conv-8: small VGGs for lottery tickets and supermasks."""

from collections.abc import Callable

import flax.linen as nn
import jax

from sparsejax.models._conv import Lowering
from sparsejax.models._initialization import Initialization, glorot_normal
from sparsejax.models._layers import Conv, plain_norm
from sparsejax.models._pooling import max_pool


class ConvNet(nn.Module):
  """Pairs of 3 x 3 convolutions with max pooling, then two dense layers of 256 units.

  The pairs have 64, 128, 256 and 512 features (Frankle and Carbin 2019, figure 2; the
  fourth pair is that of Ramanujan et al. 2020). For 32 x 32 images of three channels
  and 10 classes the kernels have 4,300,992 (Conv-2), 2,425,024 (Conv-4), 2,261,184
  (Conv-6, for which the paper prints 1.7M) and 5,275,840 weights (Conv-8).

  Pooling precedes the pair's last ReLU; the function is the same, see `LeNet5`.

  Attributes:
    depth: number of convolutions: 2, 4, 6 or 8.
    num_classes: number of logits.
    initialization: a function from a layer's fan-in to its initializers.
    use_bias: whether layers have biases.
    normalize: whether to normalize the outputs of each layer but the last over the
      batch, without scale or shift, before ReLU.
    lowering: see `sparsejax.models.Conv`.
    dot_general: the product of each dense layer.

  Example:
    >>> import jax.numpy as jnp
    >>> images = jnp.ones((1, 32, 32, 3))
    >>> variables = jax.eval_shape(ConvNet(4).init, jax.random.key(0), images)
    >>> variables["params"]["dense1"]["kernel"].shape
    (8192, 256)
  """

  depth: int = 4
  num_classes: int = 10
  initialization: Initialization = glorot_normal
  use_bias: bool = True
  normalize: bool = False
  lowering: Lowering | Callable[..., jax.Array] = "auto"
  dot_general: Callable[..., jax.Array] = jax.lax.dot_general

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps images (n, height, width, channels) to logits (n, num_classes)."""
    if self.depth not in (2, 4, 6, 8):
      raise ValueError(f"depth must be 2, 4, 6 or 8; got {self.depth}.")
    for i in range(self.depth):
      kernel_init, bias_init = self.initialization(9 * x.shape[-1])
      x = Conv(
        64 * 2 ** (i // 2),
        kernel_size=(3, 3),
        use_bias=self.use_bias,
        kernel_init=kernel_init,
        bias_init=bias_init,
        lowering=self.lowering,
        name=f"conv{i + 1}",
      )(x)
      if self.normalize:
        x = plain_norm(train, name=f"norm{i + 1}")(x)
      x = nn.relu(max_pool(x, lowering=self.lowering) if i % 2 else x)
    x = x.reshape(x.shape[0], -1)
    for i, features in enumerate((256, 256, self.num_classes), 1):
      if i > 1:
        if self.normalize:
          x = plain_norm(train, name=f"norm{self.depth + i - 1}")(x)
        x = nn.relu(x)
      kernel_init, bias_init = self.initialization(x.shape[-1])
      x = nn.Dense(
        features,
        use_bias=self.use_bias,
        kernel_init=kernel_init,
        bias_init=bias_init,
        dot_general=self.dot_general,
        name=f"dense{i}",
      )(x)
    return x
