"""Multilayer perceptrons."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax

from sparsejax.models._initialization import Initialization, torch_uniform
from sparsejax.models._layers import plain_norm


class MLP(nn.Module):
  """A multilayer perceptron; images are flattened.

  h_0 = x;  h_l = activation(h_{l-1} W_l + b_l);  logits = h_L W_{L+1} + b_{L+1}

  Attributes:
    features: widths of the hidden layers.
    num_classes: number of logits.
    activation: elementwise function after each hidden layer.
    initialization: a function from a layer's fan-in to its initializers.
    use_bias: whether layers have biases.
    normalize: whether to normalize the outputs of each hidden layer over the batch,
      without scale or shift, before the activation.
    dot_general: the product of each layer, such as `sj.block_dot_general((128, 128))`.

  Example:
    >>> import jax.numpy as jnp
    >>> model = MLP(features=(32, 16), num_classes=10)
    >>> images = jnp.ones((5, 8, 8, 1))
    >>> logits, variables = jax.eval_shape(
    ...   model.init_with_output, jax.random.key(0), images
    ... )
    >>> logits.shape, variables["params"]["dense1"]["kernel"].shape
    ((5, 10), (64, 32))
  """

  features: Sequence[int] = (128, 128)
  num_classes: int = 10
  activation: Callable[[jax.Array], jax.Array] = nn.relu
  initialization: Initialization = torch_uniform
  use_bias: bool = True
  normalize: bool = False
  dot_general: Callable[..., jax.Array] = jax.lax.dot_general

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps (n, ...) to logits (n, num_classes)."""
    x = x.reshape(x.shape[0], -1)
    widths = (*self.features, self.num_classes)
    for i, width in enumerate(widths, 1):
      kernel_init, bias_init = self.initialization(x.shape[-1])
      x = nn.Dense(
        width,
        use_bias=self.use_bias,
        kernel_init=kernel_init,
        bias_init=bias_init,
        dot_general=self.dot_general,
        name=f"dense{i}",
      )(x)
      if i < len(widths):
        if self.normalize:
          x = plain_norm(train, name=f"norm{i}")(x)
        x = self.activation(x)
    return x
