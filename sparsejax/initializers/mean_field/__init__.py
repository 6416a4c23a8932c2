"""Mean-field theory of deep tanh-like networks."""

from sparsejax.initializers.mean_field._theory import (
  chi,
  correlation_length,
  critical_line,
  fourier_rates,
  jacobian_variance,
  q_map,
  q_star,
)

__all__ = [
  "chi",
  "correlation_length",
  "critical_line",
  "fourier_rates",
  "jacobian_variance",
  "q_map",
  "q_star",
]
