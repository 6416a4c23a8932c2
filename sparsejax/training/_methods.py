"""The methods a config may name: a line each."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import sparsejax as sj
from sparsejax import supermasks


class Method(NamedTuple):
  """What training has to know of a method beside its `function`.

  Attributes:
    fields: config fields as its paper has them. Density is not among them, for that is
      what a comparison varies, and `update_every` only where the method would be
      another one without it.
    moves: whether masks change while training.
    prunes_at_init: whether the function finds masks before the first step, which
      `sj.static_sparse` then trains.
    forward: whether the loss sees `sj.effective(params, opt_state)`, the params staying
      dense.
    rescaled: whether it sees `supermasks.rescaled_effective` in its place.
    dense_gradients: whether every step takes the gradients of dead weights too; it
      counts in the estimate of a run's cost.
  """

  fields: Mapping[str, Any] = {}
  moves: bool = True
  prunes_at_init: bool = False
  forward: bool = False
  rescaled: bool = False
  dense_gradients: bool = False


# RigL's schedule, by which its paper trains SET and SNFS too.
_RIGL = {
  "drop_fraction": 0.3,
  "final_drop_fraction": 0.0,
  "end_fraction": 0.75,
  "distribution": "erk",
}
_CUBIC = {"start_fraction": 0.1, "end_fraction": 0.75}
_GLOBAL = {"distribution": "global"}
_EVERY_STEP = {"update_every": 1}

METHODS: dict[str, Method] = {
  # Dynamic.
  "sparse_momentum": Method(
    {"drop_fraction": 0.5, "final_drop_fraction": 0.005}, dense_gradients=True
  ),
  "rigl": Method(_RIGL),
  "isometric": Method({"drop_fraction": 0.3, "end_fraction": 0.75}),
  "snfs": Method(_RIGL, dense_gradients=True),
  "sparse_evolution": Method({**_RIGL, "distribution": "erdos_renyi"}),
  # The paper gives a number of weights, the same at every mask update. Shares follow
  # survivors, so a layer that starts with few weights stays a bottleneck: LeNet-300-100
  # at 2 % ends at 96.9 % from a uniform start, at 97.9 % from this one.
  "dsr": Method(
    {
      "drop_fraction": 0.1,
      "final_drop_fraction": 0.1,
      "distribution": "erk",
      "end_fraction": 0.75,
    }
  ),
  # The paper chose each layer's density by hand: least in the first, most in the last.
  "deep_r": Method({**_EVERY_STEP, "distribution": "erk"}),
  # Dense to sparse.
  "gradual_magnitude": Method(_CUBIC),
  "global_magnitude": Method({**_CUBIC, **_GLOBAL}),
  "movement_pruning": Method(_CUBIC),
  "one_shot": Method({"start_fraction": 0.5}),
  "ac_dc": Method({"start_fraction": 0.1, "end_fraction": 0.85}),
  # In the forward pass.
  "straight_through": Method(_EVERY_STEP, forward=True, dense_gradients=True),
  "sr_ste": Method(_EVERY_STEP, forward=True, dense_gradients=True),
  # It brings its own weight decay.
  "top_kast": Method({"update_every": 100, "weight_decay": 0.0}, forward=True),
  # Masks of weights that are never trained; weight decay is the scores'.
  "edge_popup": Method(
    {**_EVERY_STEP, "weight_decay": 1e-4}, forward=True, dense_gradients=True
  ),
  "bernoulli_supermask": Method(
    {**_EVERY_STEP, "weight_decay": 0.0},
    forward=True,
    rescaled=True,
    dense_gradients=True,
  ),
  # At initialization.
  "snip": Method(_GLOBAL, moves=False, prunes_at_init=True),
  "grasp": Method(_GLOBAL, moves=False, prunes_at_init=True),
  "synflow": Method(_GLOBAL, moves=False, prunes_at_init=True),
  # For comparison.
  "static_sparse": Method({"distribution": "erk"}, moves=False),
  "dense": Method({"density": 1.0}, moves=False),
}


def function(name: str) -> Callable[..., Any]:
  """Returns a method's function: `sj.<name>`, or `supermasks.<name>`.

  Args:
    name: one of `METHODS`.

  Returns:
    `(inner, density, ...) -> optimizer`, or what finds masks before training.
  """
  return getattr(sj if hasattr(sj, name) else supermasks, name)


def forward_params_fn(name: str) -> Callable[[Any, Any], Any]:
  """Returns `(params, opt_state) -> params` that the model sees.

  Args:
    name: one of `METHODS`.

  Returns:
    The params themselves, unless the method's masks act in the forward pass only.
  """
  method = METHODS[name]
  if not method.forward:
    return lambda params, opt_state: params
  return supermasks.rescaled_effective if method.rescaled else sj.effective
