"""LeNet-300-100 and LeNet-5, as in papers on sparse training on MNIST."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from sparsejax.models._conv import Lowering
from sparsejax.models._initialization import Initialization, torch_uniform
from sparsejax.models._layers import Conv, plain_norm
from sparsejax.models._mlp import MLP
from sparsejax.models._pooling import max_pool


def LeNet300(
  num_classes: int = 10,
  initialization: Initialization = torch_uniform,
  use_bias: bool = True,
  normalize: bool = False,
) -> MLP:
  """Creates LeNet-300-100: hidden layers of 300 and 100 units, with ReLU.

  The network is that of LeCun et al. (1998). For 28 x 28 images and 10 classes, its
  kernels have 266,200 weights.

  Args:
    num_classes: number of logits.
    initialization: a function from a layer's fan-in to its initializers; the default is
      PyTorch's, as in the results of Dettmers and Zettlemoyer (2019).
    use_bias: see `MLP`.
    normalize: see `MLP`.

  Returns:
    The model.

  Example:
    >>> LeNet300().features
    (300, 100)
  """
  return MLP(
    (300, 100),
    num_classes,
    initialization=initialization,
    use_bias=use_bias,
    normalize=normalize,
  )


class LeNet5(nn.Module):
  """Caffe's version of LeNet-5, with ReLU after each layer but the last.

  Convolution 20 x 5 x 5, max pooling 2, convolution 50 x 5 x 5, max pooling 2, dense
  500, dense `num_classes`; no padding. For 28 x 28 images of one channel and 10 classes
  its kernels have 430,500 weights.

  Pooling precedes ReLU. The function is the same, since both are monotone, and ReLU has
  a quarter of the elements to process.

  Attributes:
    num_classes: number of logits.
    initialization: a function from a layer's fan-in to its initializers; the default is
      PyTorch's, as in the results of Dettmers and Zettlemoyer (2019).
    use_bias: whether layers have biases.
    normalize: whether to normalize the outputs of each layer but the last over the
      batch, without scale or shift, before ReLU.
    lowering: see `sparsejax.models.conv2d`.
    features: output features of the two convolutions and of the hidden dense layer.

  Example:
    >>> import jax.numpy as jnp
    >>> model = LeNet5()
    >>> images = jnp.ones((1, 28, 28, 1))
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> variables["params"]["conv2"]["kernel"].shape
    (5, 5, 20, 50)
  """

  num_classes: int = 10
  initialization: Initialization = torch_uniform
  use_bias: bool = True
  normalize: bool = False
  lowering: Lowering = "auto"
  features: Sequence[int] = (20, 50, 500)

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps images (n, height, width, channels) to logits (n, num_classes)."""
    if len(self.features) != 3:
      raise ValueError(f"features must contain 3 widths; got {len(self.features)}.")
    for i, features in enumerate(self.features[:2], 1):
      kernel_init, bias_init = self.initialization(25 * x.shape[-1])
      x = Conv(
        features,
        kernel_size=(5, 5),
        padding="VALID",
        use_bias=self.use_bias,
        kernel_init=kernel_init,
        bias_init=bias_init,
        lowering=self.lowering,
        name=f"conv{i}",
      )(x)
      if self.normalize:
        x = plain_norm(train, name=f"norm{i}")(x)
      x = nn.relu(max_pool(x, lowering=self.lowering))
    x = x.reshape(x.shape[0], -1)
    for i, features in enumerate((self.features[2], self.num_classes), 1):
      if i > 1:
        if self.normalize:
          x = plain_norm(train, name="norm3")(x)
        x = nn.relu(x)
      kernel_init, bias_init = self.initialization(x.shape[-1])
      x = nn.Dense(
        features,
        use_bias=self.use_bias,
        kernel_init=kernel_init,
        bias_init=bias_init,
        name=f"dense{i}",
      )(x)
    return x
