"""Mean-field theory of deep tanh-like networks: variances and signal propagation.

A layer with many channels maps the variance q of its inputs to
sigma_w^2 E[phi(sqrt(q) z)^2] + sigma_b^2, z ~ N(0, 1), for any draw of the weights
(Poole et al. 2016, Schoenholz et al. 2017, Xiao et al. 2018). All expectations are
computed by Gauss-Hermite quadrature in float64, on the host; the functions cannot be
traced.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from sparsejax.initializers.mean_field import _quadrature
from sparsejax.initializers.mean_field._quadrature import Activation

# For larger q the quadrature's nodes are too far apart to resolve the slope of tanh.
_LARGEST_Q = 10.0


class CriticalPoint(NamedTuple):
  """A point of the critical line.

  Attributes:
    weight_variance: sigma_w^2.
    bias_variance: sigma_b^2.
    q_star: the variance of the pre-activations deep in the network.
  """

  weight_variance: float
  bias_variance: float
  q_star: float


def q_map(
  q: float,
  weight_variance: float,
  bias_variance: float,
  activation: Activation = jnp.tanh,
  layers: int = 1,
) -> float:
  """Computes the variance of the pre-activations some layers later.

  q <- sigma_w^2 E[phi(sqrt(q) z)^2] + sigma_b^2

  Args:
    q: variance of the pre-activations of the layer before.
    weight_variance: sigma_w^2.
    bias_variance: sigma_b^2.
    activation: phi, a JAX function.
    layers: number of layers.

  Returns:
    The variance.

  Example:
    >>> round(q_map(0.0001, 1.0, 0.0, layers=10_000) * 30_000, 2)  # 1 / (2 L + 1 / q)
    1.0
  """
  return _quadrature.iterate(activation, q, weight_variance, bias_variance, layers)


def q_star(
  weight_variance: float,
  bias_variance: float,
  activation: Activation = jnp.tanh,
  q: float = 1.0,
) -> float:
  """Computes the fixed point of `q_map` that is reached from q.

  Args:
    weight_variance: sigma_w^2.
    bias_variance: sigma_b^2.
    activation: phi, a JAX function.
    q: the initial variance.

  Returns:
    The variance of the pre-activations deep in the network; inf if it diverges, about 0
    if it decays to zero.

  Example:
    >>> round(q_star(1.0499957, 2.01e-5), 4)
    0.0259
  """
  args = weight_variance, bias_variance, activation
  # Where `q_map` is tangent to the diagonal, iteration converges as 1 / layers. Take
  # more layers at a time, and bisect if that is not enough.
  at, layers = q, 1
  for _ in range(60):
    new = q_map(at, *args, layers=layers)
    if not np.isfinite(new) or new > 1e12:
      return float("inf")
    if abs(new - at) <= 1e-12 * max(new, 1e-300) or new < 1e-12:
      return new
    at, layers = new, min(2 * layers, 2**20)
    if layers == 2**14:
      break
  return _bisect_fixed_point(at, args)


def chi(
  weight_variance: float, q: float, activation: Activation = jnp.tanh, c: float = 1.0
) -> float:
  """Computes the factor per layer of a small difference, or of a squared gradient.

  chi = sigma_w^2 E[phi'(sqrt(q) z_1) phi'(sqrt(q) z_2)],  corr(z_1, z_2) = c

  Args:
    weight_variance: sigma_w^2.
    q: variance of the pre-activations.
    activation: phi, a JAX function.
    c: correlation of the two inputs; 1 for the gradient's factor chi_1.

  Returns:
    chi; 1 is critical, less is ordered, more is chaotic.

  Example:
    >>> round(chi(1.0499957, 0.0259164), 4)
    1.0
  """
  if c == 1.0:
    return weight_variance * moment(q, 1, activation)
  return weight_variance * _quadrature.pair(activation, q, c)[1]


def moment(q: float, power: int, activation: Activation = jnp.tanh) -> float:
  """Computes mu_k = E[phi'(sqrt(q) z)^(2 k)].

  Args:
    q: variance of the pre-activations.
    power: k.
    activation: phi, a JAX function.

  Returns:
    The moment.

  Example:
    >>> round(moment(0.0, 2), 6)
    1.0
  """
  return _quadrature.averages(activation, q, power)[1]


def critical_line(
  *,
  bias_variance: float | None = None,
  weight_variance: float | None = None,
  q_star: float | None = None,
  activation: Activation = jnp.tanh,
) -> CriticalPoint:
  """Computes the point of the critical line, chi_1 = 1, with one given coordinate.

  sigma_w^2 = 1 / E[phi'(sqrt(q*) z)^2],  sigma_b^2 = q* - sigma_w^2 E[phi^2]

  Args:
    bias_variance: sigma_b^2 of the point; or
    weight_variance: sigma_w^2 of the point; or
    q_star: q* of the point.
    activation: phi, a JAX function; sigma_b^2 must grow with q*, as it does for tanh
      and erf.

  Returns:
    The point.

  Raises:
    ValueError: not exactly one coordinate is given, or no point of the line has it.

  Example:
    >>> round(critical_line(bias_variance=2.01e-5).weight_variance, 4)
    1.05
    >>> f"{critical_line(q_star=0.025).bias_variance:.3e}"
    '1.812e-05'
  """
  given: dict[str, Any] = {
    "bias_variance": bias_variance,
    "weight_variance": weight_variance,
    "q_star": q_star,
  }
  names = [name for name, value in given.items() if value is not None]
  if len(names) != 1:
    raise ValueError(
      "exactly one of bias_variance, weight_variance and q_star must be given, got "
      f"{names or 'none'}."
    )

  def point(q: float) -> CriticalPoint:
    square, slope = _quadrature.averages(activation, q)
    return CriticalPoint(1 / slope, max(q - square / slope, 0.0), q)

  # Given q*, both variances follow from the formulas.
  if q_star is not None:
    if q_star < 0:
      raise ValueError(f"q_star must be at least 0, got {q_star}.")
    return point(float(q_star))
  # The line is parametrized by q*, and both variances grow with it: bisect over log q*.
  [name], low, high = names, 1e-12, _LARGEST_Q
  wanted = float(given[name])
  coordinate = lambda q: getattr(point(q), name)
  if not coordinate(low) - 1e-9 <= wanted <= coordinate(high) + 1e-9:
    raise ValueError(
      f"{name} must be between {coordinate(low):g} and {coordinate(high):g} on the "
      f"critical line, got {wanted:g}."
    )
  if wanted <= coordinate(low):
    return point(0.0)
  for _ in range(100):
    middle = float(np.sqrt(low * high))
    low, high = (middle, high) if coordinate(middle) < wanted else (low, middle)
  return point(high)


def correlation_length(
  weight_variance: float, bias_variance: float, activation: Activation = jnp.tanh
) -> float:
  """Computes the number of layers over which correlations converge.

  xi_c = -1 / ln chi_c*

  Over xi_c layers the distance of two inputs' correlation to its fixed point c* falls
  by a factor of e; c* = 1 in the ordered phase and is below 1 in the chaotic one.

  Args:
    weight_variance: sigma_w^2.
    bias_variance: sigma_b^2.
    activation: phi, a JAX function.

  Returns:
    The length in layers; inf on the critical line. Networks of up to about six lengths
    can be trained.

  References:
    Schoenholz et al. 2017, "Deep information propagation".

  Example:
    >>> round(correlation_length(0.95, 2.01e-5))
    19
  """
  q = q_star(weight_variance, bias_variance, activation)
  rate = chi(weight_variance, q, activation)
  if rate > 1 and q > 1e-9:
    # Chaotic phase: bisect for the fixed point c* < 1 of the correlation, over log(1 -
    # c*).
    excess = lambda gap: (
      (weight_variance * _quadrature.pair(activation, q, 1 - gap)[0] + bias_variance)
      / q
      - (1 - gap)
    )
    low, high = 1e-9, 1.0  # of 1 - c*
    for _ in range(50):
      gap = float(np.sqrt(low * high))
      low, high = (gap, high) if excess(gap) < 0 else (low, gap)
    rate = chi(weight_variance, q, activation, 1 - high)
  return float("inf") if abs(rate - 1) < 1e-12 else float(-1 / np.log(rate))


def fourier_rates(profile, size: int | Sequence[int]) -> np.ndarray:
  """Computes the rate at which a layer passes each spatial pattern, at criticality.

  lambda_k = |sum_t v_t exp(2 pi i k . t / size)|,  sum_t v_t = 1

  Args:
    profile: v, the variance of each tap, (*taps).
    size: size of the image, one for all axes or one per axis; circular padding.

  Returns:
    float64 (*size): the rates, first that of the constant pattern (1). The signal of
    pattern k decays as (chi lambda_k)^L.

  Example:
    >>> fourier_rates([0, 1, 0], 4).tolist()
    [1.0, 1.0, 1.0, 1.0]
    >>> fourier_rates([1, 1, 1], 3).round(3).tolist()
    [1.0, 0.0, 0.0]
  """
  v = np.asarray(profile, np.float64)
  if (v < 0).any() or not v.sum() > 0:
    raise ValueError(f"profile must be at least 0 and not all 0, got {profile}.")
  size = (size,) * v.ndim if isinstance(size, int) else tuple(size)
  wide = np.zeros(size)
  for place in np.ndindex(*v.shape):
    wide[tuple(p % n for p, n in zip(place, size, strict=True))] += v[place]
  return np.abs(np.fft.fftn(wide / v.sum()))


def jacobian_variance(
  depth: int, q: float, activation: Activation = jnp.tanh, orthogonal: bool = True
) -> float:
  """Computes the variance of the squared singular values of the end-to-end Jacobian.

  Var = L (mu_2 / mu_1^2 - 1 - s_1),  s_1 = 0 for orthogonal weights, -1 for Gaussian

  Args:
    depth: L.
    q: variance of the pre-activations.
    activation: phi, a JAX function.
    orthogonal: whether the weights are orthogonal; Gaussian otherwise.

  Returns:
    The variance relative to a mean of 1; below about 1 the network is nearly isometric.
    About 8 L q^2 for orthogonal tanh networks of small q.

  References:
    Pennington et al. 2017, "Resurrecting the sigmoid", equation 22.

  Example:
    >>> round(jacobian_variance(10_000, 0.0259164), 1)
    42.7
  """
  ratio = moment(q, 2, activation) / moment(q, 1, activation) ** 2
  return depth * (ratio - 1 + (not orthogonal))


def _bisect_fixed_point(near: float, args: tuple) -> float:
  """Bisects for the fixed point that slow iteration approaches from above or below."""
  falling = q_map(near, *args) < near
  low, high = (1e-12, near) if falling else (near, 1e6)
  for _ in range(100):
    middle = float(np.sqrt(low * high))
    above = q_map(middle, *args) < middle
    low, high = (low, middle) if above else (middle, high)
  return float(np.sqrt(low * high))
