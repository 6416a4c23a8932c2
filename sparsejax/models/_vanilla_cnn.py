"""Convolutional networks of any depth without residuals or normalization."""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import initializers
from sparsejax.core import check_integer
from sparsejax.initializers import mean_field
from sparsejax.models._conv import Lowering
from sparsejax.models._conv_stack import Padding, Remat, conv_layer, conv_stack

ACTIVATIONS: dict[str, Callable] = {
  "tanh": jnp.tanh,
  "erf": jax.scipy.special.erf,
  "relu": jax.nn.relu,
}
KERNELS: dict[str, Callable] = {
  "delta_orthogonal": initializers.delta_orthogonal,
  "block_orthogonal": initializers.block_orthogonal,
  "sparse_orthogonal": initializers.sparse_orthogonal,
  "gaussian": initializers.gaussian,
  "lecun": initializers.lecun,
  "he": initializers.he,
}
# Scale of the random readout: small, so that training starts near the loss of chance.
_READOUT_SCALE = 0.3


class VanillaCNN(nn.Module):
  """A stack of plain convolutional layers of any depth.

  h_0 = sqrt(q0) stem(x);  h_l = phi(conv(h_{l-1}, W_l) + b_l);  logits = h_L V / rms

  It trains at 10,000 layers by its initialization alone: delta-orthogonal kernels on
  the critical line, and an input scaled so small (q0 = 1 / L) that tanh stays nearly
  linear at all layers. The input must be centred, with the mean image subtracted, or
  the outputs of all images are nearly the same; images are assumed to have mean square
  1. The learning rate scales as 1 / L, and additionally as q0 for biases: see
  `calibrate_learning_rate` and `scale_by_path`.

  The stem folds `stride` x `stride` pixels into channels, without loss; remaining
  channels start at zero. Parameters: `trunk/kernel` (L, k, k, c, c), `trunk/bias` (L,
  c), `readout/kernel`, `readout/bias`. For sparse training pass
  `stacked="trunk/kernel"`, which gives one budget per layer.

  Attributes:
    num_classes: number of logits.
    depth: L, the number of layers.
    channels: c; at least stride^2 times those of the images.
    activation: "tanh", "erf", "relu" or a JAX function.
    kernel_size: k, odd.
    padding: "zero" or "circular".
    stride: stride of the stem; None uses the largest power of two that fits.
    kernel_init: a name of `KERNELS`, or an initializer of stacked kernels.
    weight_variance: sigma_w^2; orthogonal kernels have its square root as gain.
    bias_variance: sigma_b^2.
    kernel_density: density of "sparse_orthogonal".
    input_variance: q0; None is 1 / L.
    trained: "all", "trunk" (the readout stays random) or "readout" (the trunk stays
      random, as a control).
    remat: "none" or "sqrt"; see `conv_stack`.
    unroll: see `conv_stack`.
    lowering: see `conv_stack`.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.

  References:
    Xiao et al. 2018, "Dynamical isometry and a mean field theory of CNNs: how to train
    10,000-layer vanilla convolutional neural networks".

  Example:
    >>> model = VanillaCNN(depth=1000, channels=16)
    >>> images = jnp.ones((2, 28, 28, 1))
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> variables["params"]["trunk"]["kernel"].shape
    (1000, 3, 3, 16, 16)
  """

  num_classes: int = 10
  depth: int = 100
  channels: int = 16
  activation: str | Callable = "tanh"
  kernel_size: int = 3
  padding: Padding = "zero"
  stride: int | None = None
  kernel_init: str | Callable = "delta_orthogonal"
  weight_variance: float = 1.0
  bias_variance: float = 0.0
  kernel_density: float = 0.25
  input_variance: float | None = None
  trained: str = "all"
  remat: Remat = "none"
  unroll: int = 1
  lowering: Lowering = "auto"
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps images (n, height, width, channels) to logits (n, num_classes)."""
    stride = self._stride(x.shape)
    if self.is_initializing():
      self._warn()
    phi, q0 = self.activation_function, self.q0
    # Fold pixels into channels and pad with channels of zeros.
    h = space_to_depth(x.astype(self.dtype), stride)
    h = jnp.pad(h, ((0, 0),) * 3 + ((0, self.channels - h.shape[3]),))
    k, c = self.kernel_size, self.channels
    kernel, bias = _Layer(
      (self.depth, k, k, c, c),
      (self.depth, c),
      self.make_kernel_init(),
      nn.initializers.normal(math.sqrt(self.bias_variance)),
      self.param_dtype,
      name="trunk",
    )()
    if self.trained == "readout":
      kernel, bias = jax.lax.stop_gradient((kernel, bias))
    # Scale the input to mean square q0 and apply all layers in one scan.
    h = conv_stack(
      h * np.asarray(math.sqrt(q0), self.dtype),
      kernel.astype(self.dtype),
      bias.astype(self.dtype),
      phi,
      padding=self.padding,
      lowering=self.lowering,
      remat=self.remat,
      unroll=self.unroll,
    )
    # Normalize the outputs by the theory's root mean square, then apply the readout.
    scale = _output_scale(phi, self.depth, q0, self.sigma_w2, self.bias_variance)
    h = h.reshape(h.shape[0], -1) * np.asarray(scale, self.dtype)
    normal = nn.initializers.normal
    width = h.shape[1]
    weights, bias = _Layer(
      (width, self.num_classes),
      (self.num_classes,),
      normal(_READOUT_SCALE * width**-0.5),
      nn.initializers.zeros_init(),
      self.param_dtype,
      name="readout",
    )()
    if self.trained == "trunk":
      weights, bias = jax.lax.stop_gradient((weights, bias))
    return h @ weights.astype(self.dtype) + bias.astype(self.dtype)[None]

  @property
  def q0(self) -> float:
    """The mean square of the scaled input."""
    return (
      1 / max(self.depth, 1) if self.input_variance is None else self.input_variance
    )

  @property
  def sigma_w2(self) -> float:
    """The weight variance of the theory; LeCun's and He's initializers fix it."""
    fixed = {"lecun": 1.0, "he": 2.0}
    return fixed.get(str(self.kernel_init), self.weight_variance)

  @property
  def activation_function(self) -> Callable:
    """The activation as a function."""
    if callable(self.activation):
      return self.activation
    if self.activation not in ACTIVATIONS:
      raise ValueError(
        f"activation must be one of {', '.join(ACTIVATIONS)} or a function; "
        f"got {self.activation!r}."
      )
    return ACTIVATIONS[self.activation]

  def make_kernel_init(self) -> Callable:
    """Returns the initializer of the stacked kernels."""
    if callable(self.kernel_init):
      return self.kernel_init
    if self.kernel_init not in KERNELS:
      raise ValueError(
        f"kernel_init must be one of {', '.join(KERNELS)} or an initializer; "
        f"got {self.kernel_init!r}."
      )
    gain = math.sqrt(self.weight_variance)
    kwargs: dict[str, dict] = {
      "delta_orthogonal": {"gain": gain},
      "block_orthogonal": {"gain": gain},
      "sparse_orthogonal": {"gain": gain, "density": self.kernel_density},
      "gaussian": {"variance": self.weight_variance},
    }
    return KERNELS[self.kernel_init](stacked=True, **kwargs.get(self.kernel_init, {}))

  def layer(self, weights: dict, h: jax.Array) -> jax.Array:
    """Applies one layer to one image.

    The arguments are `({"kernel": (k, k, c, c), "bias": (c,)}, h)`, as for the argument
    `layer` of `sparsejax.analysis.end_to_end`.
    """
    return conv_layer(
      h[None],
      weights["kernel"],
      weights["bias"],
      self.activation_function,
      padding=self.padding,
    )[0]

  def _stride(self, shape):
    """Returns the stem's stride; raises ValueError if anything does not fit."""
    if len(shape) != 4:
      raise ValueError(f"images must be (n, height, width, channels); got {shape}.")
    stride = self.stride
    if stride is None:
      stride = 1
      while 4 * stride**2 * shape[3] <= self.channels and not (
        shape[1] % (2 * stride) or shape[2] % (2 * stride)
      ):
        stride *= 2
    if shape[1] % stride or shape[2] % stride:
      raise ValueError(
        f"height and width must be multiples of stride {stride}; got {shape}."
      )
    if self.channels < stride**2 * shape[3]:
      raise ValueError(
        "channels must contain what the stem folds into them, stride^2 c = "
        f"{stride**2 * shape[3]}; got {self.channels}."
      )
    for name, value, least in (("depth", self.depth, 1), ("q0", self.q0, 1e-300)):
      if value < least:
        raise ValueError(f"{name} must be above 0; got {value}.")
    if self.trained not in ("all", "trunk", "readout"):
      raise ValueError(
        f"trained must be one of all, trunk, readout; got {self.trained!r}."
      )
    return stride

  def _warn(self):
    """Warns of slow dtypes, long compilation, and variances that are not isometric."""
    low = [d for d in (self.dtype, self.param_dtype) if jnp.dtype(d).itemsize < 4]
    if low and jax.default_backend() == "cpu":
      warnings.warn(
        f"{jnp.dtype(low[0]).name} runs about 20 times slower than float32 on CPUs.",
        stacklevel=4,
      )
    if self.unroll > 100:
      warnings.warn(
        f"unroll={self.unroll} compiles that many layers one by one: minutes from 200 "
        "on. 1 compiles one layer.",
        stacklevel=4,
      )
    if self.activation == "tanh":
      q = mean_field.q_star(self.sigma_w2, self.bias_variance, q=self.q0)
      if 8 * self.depth * q**2 > 1:
        warnings.warn(
          f"sigma_w^2={self.sigma_w2:g} and sigma_b^2={self.bias_variance:g} "
          f"are not isometric at {self.depth} layers: 8 L q*^2 = "
          f"{8 * self.depth * q**2:.3g}, above 1. Take sigma_w^2=1, sigma_b^2=0, "
          "q0=1/L.",
          stacklevel=4,
        )


class _Layer(nn.Module):
  """The kernel and bias of one layer or of a stack."""

  kernel_shape: tuple[int, ...]
  bias_shape: tuple[int, ...]
  kernel_init: Callable
  bias_init: Callable
  dtype: Any

  @nn.compact
  def __call__(self):
    kernel = self.param("kernel", self.kernel_init, self.kernel_shape, self.dtype)
    return kernel, self.param("bias", self.bias_init, self.bias_shape, self.dtype)


def space_to_depth(x: jax.Array, stride: int) -> jax.Array:
  """Folds blocks of pixels into channels, without loss.

  Args:
    x: (n, height, width, c), both multiples of `stride`.
    stride: side of a block.

  Returns:
    (n, height / stride, width / stride, stride^2 c).

  Example:
    >>> space_to_depth(jnp.ones((1, 28, 28, 1)), 4).shape
    (1, 7, 7, 16)
  """
  check_integer("stride", stride, 1)
  if jnp.ndim(x) != 4 or x.shape[1] % stride or x.shape[2] % stride:
    raise ValueError(
      f"x must be (n, h, w, c) with h and w multiples of stride {stride}, got "
      f"{jnp.shape(x)}."
    )
  n, h, w, c = x.shape
  x = x.reshape(n, h // stride, stride, w // stride, stride, c)
  x = x.transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(n, h // stride, w // stride, stride**2 * c)


@functools.lru_cache(maxsize=256)
def _output_scale(phi, depth, q0, weight_variance, bias_variance) -> float:
  """Returns 1 / root mean square of the last layer's outputs, by mean-field theory."""
  # The variance of the last layer's pre-activations, then the mean square of phi of
  # them.
  q = weight_variance * q0 + bias_variance
  q = mean_field.q_map(q, weight_variance, bias_variance, phi, layers=depth - 1)
  square = mean_field.q_map(q, 1.0, 0.0, phi)
  return 1 / math.sqrt(max(square, 1e-30))
