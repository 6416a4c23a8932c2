"""Initializers of weights and biases by a layer's fan-in."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from sparsejax.core import check_integer, check_number

Initializer = nn.initializers.Initializer
# fan_in -> (initializer of the kernel, initializer of the bias)
Initialization = Callable[[int], tuple[Initializer, Initializer]]


def torch_uniform(fan_in: int) -> tuple[Initializer, Initializer]:
  """Returns PyTorch's default for linear and convolutional layers, biases included.

  w, b ~ U(-1 / sqrt(fan_in), 1 / sqrt(fan_in))

  Published results on LeNets from PyTorch, such as those of sparse momentum, used this
  initialization (the rule of He et al. 2015 with a = sqrt(5)).

  Args:
    fan_in: number of inputs per output: height x width x channels of a kernel.

  Returns:
    Initializers of the kernel and of the bias.

  Example:
    >>> kernel_init, _ = torch_uniform(fan_in=100)
    >>> bool(jnp.abs(kernel_init(jax.random.key(0), (100, 50))).max() <= 0.1)
    True
  """
  check_integer("fan_in", fan_in, 1)

  def init(key, shape, dtype=jnp.float32, out_sharding=None):
    del out_sharding
    bound = fan_in**-0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init, init


def lecun_normal(fan_in: int) -> tuple[Initializer, Initializer]:
  """Returns flax's default (LeCun et al. 1998): w ~ truncated N(0, 1 / fan_in), b = 0.

  Args:
    fan_in: unused; the initializer reads it from the kernel's shape.

  Returns:
    Initializers of the kernel and of the bias.

  Example:
    >>> _, bias_init = lecun_normal(fan_in=100)
    >>> bias_init(jax.random.key(0), (2,))
    Array([0., 0.], dtype=float32)
  """
  del fan_in
  return nn.initializers.lecun_normal(), nn.initializers.zeros_init()


def glorot_normal(fan_in: int) -> tuple[Initializer, Initializer]:
  """Returns Glorot and Bengio's (2010) initializers, of normal weights.

  w ~ truncated N(0, 2 / (fan_in + fan_out)),  b = 0

  The lottery ticket paper (Frankle and Carbin 2019) uses this initialization.

  Args:
    fan_in: unused; the initializer reads it from the kernel's shape.

  Returns:
    Initializers of the kernel and of the bias.

  Example:
    >>> kernel_init, _ = glorot_normal(fan_in=600)
    >>> round(float(kernel_init(jax.random.key(0), (600, 200)).std()), 2)
    0.05
  """
  del fan_in
  return nn.initializers.glorot_normal(), nn.initializers.zeros_init()


def kaiming_normal(
  fan_in: int, density: float = 1.0
) -> tuple[Initializer, Initializer]:
  """Returns He et al.'s (2015), by fan-in: w ~ N(0, 2 / (fan_in density)), b = 0.

  With a supermask's density, the outputs of a masked layer have the variance of an
  unmasked layer: the "scaled" weights of Ramanujan et al. (2020), section 4.

  Args:
    fan_in: number of inputs per output: height x width x channels of a kernel.
    density: fraction of the weights that a mask will keep, in (0, 1]; 1 for unscaled.

  Returns:
    Initializers of the kernel and of the bias.

  Raises:
    ValueError: density is outside (0, 1].

  Example:
    >>> kernel_init, _ = kaiming_normal(fan_in=200, density=0.25)
    >>> round(float(kernel_init(jax.random.key(0), (200, 500)).std()), 2)
    0.2
  """
  std = _kaiming_std(fan_in, density)

  def init(key, shape, dtype=jnp.float32, out_sharding=None):
    del out_sharding
    return jax.random.normal(key, shape, dtype) * jnp.asarray(std, dtype)

  return init, nn.initializers.zeros_init()


def signed_kaiming_constant(
  fan_in: int, density: float = 1.0
) -> tuple[Initializer, Initializer]:
  """Returns a constant with random signs: w = +-sqrt(2 / (fan_in density)), b = 0.

  Of the random weights of Ramanujan et al. (2020, sections 4 and 5.4), these give the
  best supermasks. Each weight can be stored as one bit.

  Args:
    fan_in: number of inputs per output: height x width x channels of a kernel.
    density: see `kaiming_normal`.

  Returns:
    Initializers of the kernel and of the bias.

  Raises:
    ValueError: density is outside (0, 1].

  Example:
    >>> kernel_init, _ = signed_kaiming_constant(fan_in=8)
    >>> jnp.unique(kernel_init(jax.random.key(0), (8, 4)))
    Array([-0.5,  0.5], dtype=float32)
  """
  constant = _kaiming_std(fan_in, density)

  def init(key, shape, dtype=jnp.float32, out_sharding=None):
    del out_sharding
    return jax.random.rademacher(key, shape, dtype) * jnp.asarray(constant, dtype)

  return init, nn.initializers.zeros_init()


def _kaiming_std(fan_in: int, density: float) -> float:
  check_number("density", density, "lie in (0, 1]", lambda v: 0 < v <= 1)
  return math.sqrt(2 / (fan_in * density))


def he_normal_fan_out(fan_in: int) -> tuple[Initializer, Initializer]:
  """Returns He et al.'s (2015), by fan-out: w ~ N(0, 2 / fan_out), b = 0.

  Residual networks use it, in their authors' code and in PyTorch's.

  Args:
    fan_in: unused; the initializer reads fan_out from the kernel's shape.

  Returns:
    Initializers of the kernel and of the bias.

  Example:
    >>> kernel_init, _ = he_normal_fan_out(fan_in=27)
    >>> round(float(kernel_init(jax.random.key(0), (3, 3, 3, 800)).std()), 3)
    0.017
  """
  del fan_in
  kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
  return kernel_init, nn.initializers.zeros_init()
