"""Grow-and-prune synthesis (NeST): seeds, four policies, capacity and the loop.

This package needs flax, whose modules it intercepts while they are traced.
`import sparsejax` does not import it.
"""

from sparsejax.growth._bridging import bridge
from sparsejax.growth._capacity import carry_over
from sparsejax.growth._chain import Layer, Size, candidates, layers, live_units, size
from sparsejax.growth._chain import get as get_leaf
from sparsejax.growth._connections import grow_connections
from sparsejax.growth._feature_maps import grow_feature_map
from sparsejax.growth._neurons import grow_neurons
from sparsejax.growth._new_weights import warm_up
from sparsejax.growth._partial_area import (
  area_contributions,
  contributions,
  multiply_adds_removed,
  partial_area_conv,
  prune_areas,
  whole_areas,
  with_areas,
)
from sparsejax.growth._prune import (
  effective_weights,
  prune_connections,
  prune_units,
  remove_dead,
  remove_unreachable,
  unit_importance,
)
from sparsejax.growth._seeds import seed
from sparsejax.growth._synthesis import (
  Actions,
  Milestone,
  Plan,
  Position,
  check_plan,
  synthesize,
)

__all__ = [
  "Actions",
  "Layer",
  "Milestone",
  "Plan",
  "Position",
  "Size",
  "area_contributions",
  "bridge",
  "candidates",
  "carry_over",
  "check_plan",
  "contributions",
  "effective_weights",
  "grow_connections",
  "grow_feature_map",
  "grow_neurons",
  "layers",
  "live_units",
  "multiply_adds_removed",
  "partial_area_conv",
  "prune_areas",
  "prune_connections",
  "prune_units",
  "remove_dead",
  "remove_unreachable",
  "seed",
  "size",
  "synthesize",
  "unit_importance",
  "warm_up",
  "whole_areas",
  "with_areas",
]
