"""The table of methods that a config can select."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import sparsejax as sj
from sparsejax import supermasks
from sparsejax.training import _errors


class Method(NamedTuple):
  """The properties of a method that training needs beside its `function`.

  Attributes:
    fields: config fields that the method's paper prescribes. They do not include the
      density, which comparisons vary, and include `update_every` only where another
      value would make it another method.
    moves: whether masks change during training.
    prunes_at_init: whether the function finds masks before the first step;
      `sj.static_sparse` then trains with them.
    data_free: whether that function takes the model and the shape of its inputs, in
      place of a loss and batches.
    forward: whether the forward pass uses `sj.effective(params, opt_state)` while the
      params stay dense.
    rescaled: whether it uses `supermasks.rescaled_effective` instead.
    dense_gradients: whether every step computes the gradients of masked weights too;
      used in the estimate of a run's cost.
  """

  fields: Mapping[str, Any] = {}
  moves: bool = True
  prunes_at_init: bool = False
  data_free: bool = False
  forward: bool = False
  rescaled: bool = False
  dense_gradients: bool = False


# RigL's schedule; its paper also trains SET and SNFS with it.
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
  # The soft memory bound; `method_kwargs={"soft_bound": False}` for the hard one.
  "mest": Method(_RIGL),
  "chts": Method(_RIGL),
  "isometric": Method({"drop_fraction": 0.3, "end_fraction": 0.75}),
  "snfs": Method(_RIGL, dense_gradients=True),
  "sparse_evolution": Method({**_RIGL, "distribution": "erdos_renyi"}),
  # The paper drops the same number of weights at every mask update. Layers regrow in
  # proportion to their surviving weights, so a layer that starts with few weights stays
  # a bottleneck: LeNet-300-100 at density 2 % reaches 96.9 % accuracy from a uniform
  # start, and 97.9 % from ERK.
  "dsr": Method(
    {
      "drop_fraction": 0.1,
      "final_drop_fraction": 0.1,
      "distribution": "erk",
      "end_fraction": 0.75,
    }
  ),
  # The paper chose densities by hand: lowest in the first layer, highest in the last.
  "deep_r": Method({**_EVERY_STEP, "distribution": "erk"}),
  # Dense to sparse.
  "gradual_magnitude": Method(_CUBIC),
  "global_magnitude": Method({**_CUBIC, **_GLOBAL}),
  "global_saliency": Method({**_CUBIC, **_GLOBAL}),
  "granet": Method(
    {
      "drop_fraction": 0.5,
      "final_drop_fraction": 0.0,
      "end_fraction": 0.75,
      **_GLOBAL,
    }
  ),
  "movement_pruning": Method(_CUBIC),
  # The paper trains with plain SGD; alpha = 3 and 4 bear the most pruning on MNIST.
  "powerpropagation": Method(_CUBIC),
  "one_shot": Method({"start_fraction": 0.5}),
  "ac_dc": Method({"start_fraction": 0.1, "end_fraction": 0.85}),
  # Masks that act in the forward pass.
  "straight_through": Method(_EVERY_STEP, forward=True, dense_gradients=True),
  "sr_ste": Method(_EVERY_STEP, forward=True, dense_gradients=True),
  # The scores of all layers compete when the gates harden; the rest is fine-tuning.
  "continuous_sparsification": Method(
    {**_EVERY_STEP, **_GLOBAL, "end_fraction": 0.75}, forward=True, dense_gradients=True
  ),
  # The masks are fixed in the last fifth; weights from all layers compete.
  "spartan": Method(
    {**_EVERY_STEP, **_GLOBAL, "end_fraction": 0.8}, forward=True, dense_gradients=True
  ),
  "s_ste": Method(_EVERY_STEP, forward=True, dense_gradients=True),
  # It has its own weight decay.
  "top_kast": Method({"update_every": 100, "weight_decay": 0.0}, forward=True),
  # Masks of weights that are never trained; weight decay is applied to the scores.
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
  "synflow": Method(_GLOBAL, moves=False, prunes_at_init=True, data_free=True),
  "prospr": Method({**_GLOBAL, "pruning_batches": 4}, moves=False, prunes_at_init=True),
  "ntk_sap": Method(_GLOBAL, moves=False, prunes_at_init=True, data_free=True),
  "phew": Method(_GLOBAL, moves=False, prunes_at_init=True, data_free=True),
  # For comparison.
  "static_sparse": Method({"distribution": "erk"}, moves=False),
  "dense": Method({"density": 1.0}, moves=False),
}


def function(name: str) -> Callable[..., Any]:
  """Returns a method's function, `sj.<name>`.

  Args:
    name: a key of `METHODS`.

  Returns:
    `(inner, density, ...) -> optimizer`; for a method that prunes at initialization, a
    function that finds masks.
  """
  return getattr(sj, name)


# Arguments that are scores, and the scores that a config can name.
_SCORE_ARGUMENTS = ("drop_score", "grow_score", "redistribute_by")
_SCORES = (
  *("accumulated", "accumulated_magnitude", "fisher", "gradient", "magnitude"),
  *("momentum", "movement", "nonzeros", "random", "signed_gradient", "taylor"),
)


def resolve_kwargs(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
  """Returns `method_kwargs` with scores in place of their names.

  Args:
    name: a key of `METHODS`.
    kwargs: arguments of the method's function; scores may be names, such as "random".

  Raises:
    ConfigError: if the function lacks an argument, or there is no such score.
  """
  accepted = inspect.signature(function(name)).parameters
  if unknown := sorted(set(kwargs) - set(accepted)):
    raise _errors.ConfigError(
      f"method_kwargs must be arguments of {name}"
      f" ({', '.join(accepted)}); got {', '.join(unknown)}"
    )
  resolved = dict(kwargs)
  for argument in _SCORE_ARGUMENTS:
    if isinstance(score := kwargs.get(argument), str):
      # Rules of redistribution see budgets, which other scores do not.
      scores = [s for s in _SCORES if argument == "redistribute_by" or s != "nonzeros"]
      if score not in scores:
        raise _errors.ConfigError(
          f"method_kwargs must name a score for {argument} ({', '.join(scores)});"
          f" got {score!r}"
        )
      resolved[argument] = getattr(sj, score)
  return resolved


def forward_params_fn(name: str) -> Callable[[Any, Any], Any]:
  """Returns the function `(params, opt_state) -> params` of the forward pass.

  Args:
    name: a key of `METHODS`.

  Returns:
    A function that returns `params` themselves, unless the method's masks act in the
    forward pass only.
  """
  method = METHODS[name]
  if not method.forward:
    return lambda params, opt_state: params
  return supermasks.rescaled_effective if method.rescaled else sj.effective
