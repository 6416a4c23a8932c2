"""Analyses of networks: costs, compaction, isometry, tickets and their plots."""

from sparsejax.analysis._isometry import Spectrum, end_to_end, single_layers
from sparsejax.analysis._isometry_plots import plot_depth_scale, plot_spectra
from sparsejax.analysis._plot_style import (
  COLORS,
  DISPLAY_NAMES,
  FAINT,
  INK,
  line_colors,
  method_name,
  new_figure,
  run_title,
  style_axes,
)
from sparsejax.analysis._specialization import (
  class_contributions,
  class_specialization,
  specialization_anova,
)
from sparsejax.analysis._ticket_plots import (
  plot_connectivity,
  plot_instability,
  plot_tickets,
)
from sparsejax.analysis._tickets import (
  input_connectivity,
  layer_densities,
  mask_image,
  overlap,
)
from sparsejax.analysis.compaction import Compact, compact, live_parameters
from sparsejax.analysis.costs import (
  Cost,
  Estimates,
  LayerCost,
  Sizes,
  estimated_speedups,
  flops,
  sizes,
)
from sparsejax.analysis.deployment import (
  Deployed,
  Latency,
  LayerFormat,
  deploy,
  latency,
)

__all__ = [
  "Compact",
  "Cost",
  "Deployed",
  "Estimates",
  "Latency",
  "LayerCost",
  "LayerFormat",
  "Sizes",
  "class_contributions",
  "class_specialization",
  "compact",
  "deploy",
  "end_to_end",
  "estimated_speedups",
  "flops",
  "input_connectivity",
  "latency",
  "layer_densities",
  "live_parameters",
  "overlap",
  "plot_connectivity",
  "plot_depth_scale",
  "plot_instability",
  "plot_spectra",
  "plot_tickets",
  "single_layers",
  "sizes",
  "specialization_anova",
]
