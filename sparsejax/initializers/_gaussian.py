"""Kernels of independent normal weights, as a baseline for orthogonal ones."""

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core import check_number
from sparsejax.initializers._orthogonal import at_least_float32, split_shape


def gaussian(variance: float = 1.0, profile=None, *, stacked: bool | None = None):
  """Returns an initializer of independent normal weights with any variance per tap.

  W[t, i, j] ~ N(0, sigma_w^2 v_t / c_in),  sum_t v_t = 1

  A uniform profile damps every spatial pattern but the constant one
  (`mean_field.fourier_rates`). A profile on the center alone damps none, but the
  spectrum of a product of Gaussian matrices still spreads with depth.

  Args:
    variance: sigma_w^2 of the theory, at least 0.
    profile: v, of the taps' shape, at least 0; scaled to sum to 1. None is uniform.
    stacked: whether shapes have a leading axis of layers; must be given for rank 5.

  Returns:
    An initializer `(key, shape, dtype=float32) -> array`.

  Raises:
    ValueError: the variance or the profile is negative; (the initializer) the profile's
      shape is not the taps'.

  Example:
    >>> init = gaussian(2.0, profile=[0.25, 0.5, 0.25])
    >>> kernel = init(jax.random.key(0), (3, 400, 400))
    >>> (400 * kernel.var(axis=(1, 2))).round(1)
    Array([0.5, 1. , 0.5], dtype=float32)
  """
  check_number("variance", variance, "be at least 0", lambda v: 0 <= v < np.inf)
  given = None if profile is None else np.asarray(profile, np.float64)
  if given is not None and ((given < 0).any() or not given.sum() > 0):
    raise ValueError(f"profile must be at least 0 and not all 0, got {profile}.")

  def init(key, shape, dtype=jnp.float32, out_sharding=None):
    del out_sharding
    layers, taps, c_in, c_out = split_shape(shape, stacked)
    v = np.ones(taps) if given is None else given
    if v.shape != taps:
      raise ValueError(f"profile must have the taps' shape {taps}, got {v.shape}.")
    scale = np.sqrt(variance * v / v.sum() / c_in)
    scale = scale.reshape((1,) * len(layers) + (*taps, 1, 1))
    wide = at_least_float32(dtype)
    normal = jax.random.normal(key, (*layers, *taps, c_in, c_out), wide)
    return (normal * scale.astype(wide)).astype(dtype)

  return init


def lecun(*, stacked: bool | None = None):
  """Returns LeCun et al.'s initializer: `gaussian` of variance 1 / fan_in on all taps.

  Args:
    stacked: see `gaussian`.

  Returns:
    An initializer.

  Example:
    >>> lecun(stacked=True)(jax.random.key(0), (4, 3, 3, 2, 2)).shape
    (4, 3, 3, 2, 2)
  """
  return gaussian(1.0, stacked=stacked)


def he(*, stacked: bool | None = None):
  """Returns He et al.'s initializer: `gaussian` of variance 2 / fan_in on all taps.

  Args:
    stacked: see `gaussian`.

  Returns:
    An initializer.

  Example:
    >>> he()(jax.random.key(0), (3, 3, 2, 2)).shape
    (3, 3, 2, 2)
  """
  return gaussian(2.0, stacked=stacked)
