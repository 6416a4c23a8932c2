"""Executable theory: strong lottery tickets, double descent and interpolation SGD."""

from sparsejax.theory._double_descent import (
  Fit,
  fit_features,
  gaussian_kernel,
  minimum_norm_fit,
  random_fourier_features,
)
from sparsejax.theory._golden_ratio import intervals_needed
from sparsejax.theory._golden_ratio import samples_needed as golden_ratio_samples_needed
from sparsejax.theory._interpolation_sgd import (
  Spectrum,
  contraction,
  critical_batch_size,
  iterations_bound,
  kernel_spectrum,
  optimal_contraction,
  optimal_step_size,
  simulate,
  spectrum,
)
from sparsejax.theory._pick_one import samples_needed as pick_one_samples_needed
from sparsejax.theory._strong import CONSTRUCTIONS, StrongTicket, approximate
from sparsejax.theory._strong_network import run_effective, run_network
from sparsejax.theory._subset_sum import subset_sum
from sparsejax.theory._toy_problems import Problem, monk, xor

__all__ = [
  "Fit",
  "Problem",
  "Spectrum",
  "StrongTicket",
  "approximate",
  "contraction",
  "critical_batch_size",
  "fit_features",
  "gaussian_kernel",
  "iterations_bound",
  "kernel_spectrum",
  "minimum_norm_fit",
  "monk",
  "optimal_contraction",
  "optimal_step_size",
  "random_fourier_features",
  "run_effective",
  "run_network",
  "simulate",
  "spectrum",
  "xor",
]
