"""The methods a config may name: a line each."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Method(NamedTuple):
  """What training has to know of a method beside its function `sj.<name>`.

  Attributes:
    fields: config fields as its paper has them. Density is not among them, for that is
      what a comparison varies, and `update_every` only where the method would be
      another one without it.
    moves: whether masks change while training.
    dense_gradients: whether every step takes the gradients of dead weights too; it
      counts in the estimate of a run's cost.
  """

  fields: Mapping[str, Any] = {}
  moves: bool = True
  dense_gradients: bool = False


METHODS: dict[str, Method] = {
  "sparse_momentum": Method(
    {"drop_fraction": 0.5, "final_drop_fraction": 0.005}, dense_gradients=True
  ),
  "sparse_evolution": Method({"drop_fraction": 0.3, "final_drop_fraction": 0.3}),
  "rigl": Method(
    {"drop_fraction": 0.3, "final_drop_fraction": 0.0, "end_fraction": 0.75}
  ),
  "static_sparse": Method(moves=False),
  "gradual_magnitude": Method({"start_fraction": 0.1, "end_fraction": 0.75}),
  "dense": Method({"density": 1.0}, moves=False),
}
