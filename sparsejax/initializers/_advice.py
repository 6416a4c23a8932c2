"""Advice on the trainable depth of a network, as text."""

import jax.numpy as jnp
import numpy as np

from sparsejax.core import check_callable, check_integer, check_number
from sparsejax.initializers.mean_field._quadrature import Activation
from sparsejax.initializers.mean_field._theory import (
  chi,
  correlation_length,
  critical_line,
  jacobian_variance,
  q_map,
  q_star,
)

# Networks train up to about six correlation lengths (Schoenholz et al. 2017, section
# 5).
_TRAINABLE_LENGTHS = 6


def trainable_depth(
  weight_variance: float,
  bias_variance: float = 0.0,
  depth: int | None = None,
  activation: Activation = jnp.tanh,
  q: float | None = None,
) -> str:
  """Describes how deep a network with these variances can be.

  Args:
    weight_variance: sigma_w^2.
    bias_variance: sigma_b^2.
    depth: the number of layers that is wanted, or None.
    activation: phi, a JAX function.
    q: mean square of the scaled input; None for the fixed point q*.

  Returns:
    A few sentences: the phase, over how many layers signals and gradients propagate,
    how close the network is to an isometry, and what to change.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: a variance is negative, or depth is below 1.

  Example:
    >>> print(trainable_depth(1.3, 2.01e-5, depth=1000))
    Chaotic: chi = 1.02, the correlation length is 110 layers, so about 660 layers can
    be trained, not 1,000. The critical sigma_w^2 for this sigma_b^2 is 1.0500.
  """
  for name, value in (
    ("weight_variance", weight_variance),
    ("bias_variance", bias_variance),
  ):
    check_number(name, value, "be at least 0", lambda v: 0 <= v < np.inf)
  if depth is not None:
    check_integer("depth", depth, 1)
  check_callable("activation", activation, "a function of an array", 1)
  # The phase follows from the factor chi at the fixed point q*.
  fixed = q_star(weight_variance, bias_variance, activation, q=1.0 if q is None else q)
  if not np.isfinite(fixed):
    return "The variance grows without end: lower sigma_w^2."
  rate = chi(weight_variance, fixed, activation)
  length = correlation_length(weight_variance, bias_variance, activation)
  critical = abs(rate - 1) < 1e-4 or length > 1e4
  phase = "Critical" if critical else "Ordered" if rate < 1 else "Chaotic"
  words = [f"{phase}: chi = {rate:.3g}"]
  # Off the critical line the correlation length limits the depth. On it, the limit is
  # the spread of the Jacobian's singular values, at the largest q that the network
  # reaches.
  if not critical:
    reach = _TRAINABLE_LENGTHS * length
    words[0] += f", the correlation length is {length:.0f} layers"
    words[0] += f", so about {float(f'{reach:.2g}'):,.0f} layers can be trained"
    if depth is not None:
      words[0] += f", {'as wanted' if depth <= reach else f'not {depth:,}'}"
    try:
      point = critical_line(bias_variance=bias_variance, activation=activation)
      words.append(
        f"The critical sigma_w^2 for this sigma_b^2 is {point.weight_variance:.4f}"
      )
    except ValueError:
      pass
  else:
    words[0] += ", correlations and gradients live on at any depth"
    at = (
      fixed
      if q is None
      else max(
        fixed, q_map(q, weight_variance, bias_variance, activation, layers=depth or 1)
      )
    )
    most = 1 / max(jacobian_variance(1, at, activation), 1e-300)
    if most < 1e9:
      words.append(
        f"At q = {at:.2g} orthogonal kernels stay nearly isometric for about "
        f"{float(f'{most:.2g}'):,.0f} layers"
      )
      if depth is not None and depth > most:
        words.append(
          f"For {depth:,} layers take sigma_w^2 = 1 (tanh), sigma_b^2 = 0 and "
          f"inputs of mean square {1 / depth:.1g}"
        )
    else:
      words.append("Orthogonal kernels stay nearly isometric at any depth")
  return ". ".join(words) + "."
