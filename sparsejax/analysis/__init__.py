"""What networks cost and compute; theory made executable."""

from sparsejax.analysis.compaction import Compact, compact, live_parameters
from sparsejax.analysis.double_descent import (
  Fit,
  fit_features,
  gaussian_kernel,
  minimum_norm_fit,
  random_fourier_features,
)
from sparsejax.analysis.estimates import Estimates, estimated_speedups
from sparsejax.analysis.interpolation_sgd import (
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
from sparsejax.analysis.isometry import end_to_end, single_layers
from sparsejax.analysis.isometry_plots import plot_depth_scale, plot_spectra
from sparsejax.analysis.multiply_adds import Cost, LayerCost, flops
from sparsejax.analysis.sizes import Sizes, sizes
from sparsejax.analysis.specialization import (
  class_contributions,
  class_specialization,
  specialization_anova,
)
from sparsejax.analysis.ticket_plots import (
  plot_connectivity,
  plot_instability,
  plot_tickets,
)
from sparsejax.analysis.tickets import input_connectivity, layer_densities, overlap
from sparsejax.analysis.toy_problems import Problem, monk, xor

__all__ = [
  "Compact",
  "Cost",
  "Estimates",
  "Fit",
  "LayerCost",
  "Problem",
  "Sizes",
  "Spectrum",
  "class_contributions",
  "class_specialization",
  "compact",
  "contraction",
  "critical_batch_size",
  "end_to_end",
  "estimated_speedups",
  "fit_features",
  "flops",
  "gaussian_kernel",
  "input_connectivity",
  "iterations_bound",
  "kernel_spectrum",
  "layer_densities",
  "live_parameters",
  "minimum_norm_fit",
  "monk",
  "optimal_contraction",
  "optimal_step_size",
  "overlap",
  "plot_connectivity",
  "plot_depth_scale",
  "plot_instability",
  "plot_spectra",
  "plot_tickets",
  "random_fourier_features",
  "simulate",
  "single_layers",
  "sizes",
  "specialization_anova",
  "spectrum",
  "xor",
]
