"""The sparse optimizer that a config describes."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import sparsejax as sj
from sparsejax.training import errors

Config = Any  # a frozen config of `config.complete`

# These never change their masks, whatever the schedule says.
_FIXED = ("static_sparse", "dense")


def learning_rate(config: Config, total_steps: int) -> optax.Schedule:
  """Returns `step -> learning rate`.

  `constant`; `step`: times `lr_decay_factor` after every `lr_decay_every` steps;
  `cosine`: to zero at the end of the run.

  Args:
    config: a complete config.
    total_steps: steps of the whole run.

  Returns:
    An optax schedule.
  """
  if config.lr_schedule == "step":
    return optax.exponential_decay(
      config.learning_rate,
      config.lr_decay_every,
      config.lr_decay_factor,
      staircase=True,
    )
  if config.lr_schedule == "cosine":
    return _cosine(config.learning_rate, 0.0, total_steps)
  return optax.constant_schedule(config.learning_rate)


def window(config: Config, total_steps: int) -> tuple[int, int]:
  """Returns the steps `(start, end)` between which masks may be updated.

  The start is one step late: then a mask update that falls on the end of an epoch is
  done in the next one's first step, and the epoch is evaluated before it, as in the
  papers' programs. A mask update after the last step would leave weights that were
  never trained, so the end lies before it.

  Args:
    config: a complete config.
    total_steps: steps of the whole run.

  Returns:
    `start_step` and `end_step` of `sj.sparsify`.
  """
  start = round(config.start_fraction * total_steps) + 1
  return start, min(round(config.end_fraction * total_steps), total_steps - 1)


def drop_fraction(config: Config, total_steps: int) -> optax.Schedule:
  """Returns `step -> drop fraction`, a cosine that stays at its final value.

  `final + (first - final) (1 + cos(pi min(step, end) / end)) / 2`.

  Args:
    config: a complete config.
    total_steps: steps of the whole run.

  Returns:
    An optax schedule.
  """
  end = max(1, round(config.end_fraction * total_steps))
  return _cosine(config.drop_fraction, config.final_drop_fraction, end)


def _cosine(first: float, final: float, steps: int) -> optax.Schedule:
  # optax's own mixes integer steps with floats, which strict promotion refuses.
  def schedule(step):
    t = jnp.minimum(jnp.asarray(step, jnp.float32), steps) / steps
    return final + (first - final) * (1 + jnp.cos(jnp.pi * t)) / 2

  return schedule


def inner(config: Config, total_steps: int) -> optax.GradientTransformation:
  """Returns the dense optimizer; a step with a non-finite gradient changes nothing.

  Args:
    config: a complete config.
    total_steps: steps of the whole run.

  Returns:
    An optax optimizer whose state counts the steps it passed over.
  """
  rate, decay = learning_rate(config, total_steps), config.weight_decay
  if config.optimizer == "adamw":
    chain = optax.adamw(rate, b1=config.momentum, weight_decay=decay)
  else:
    if config.optimizer == "adam":
      last = optax.adam(rate, b1=config.momentum)
    else:
      last = optax.sgd(rate, momentum=config.momentum, nesterov=config.momentum > 0)
    # L2: added to the gradient, before the momentum.
    chain = optax.chain(optax.add_decayed_weights(decay), last) if decay else last
  # optax gives in after so many errors in a row; the loop ends the run long before.
  return optax.apply_if_finite(chain, max_consecutive_errors=2**31 - 1)


def make_tx(
  config: Config, total_steps: int, seed: Any
) -> optax.GradientTransformationExtraArgs:
  """Returns the sparse optimizer of a config.

  Args:
    config: a complete config.
    total_steps: steps of the whole run.
    seed: of the masks, an integer that may be traced.

  Returns:
    `sj.<method>(inner, density, ...)`.

  Raises:
    ConfigError: if `method_kwargs` do not fit the method.
  """
  method = getattr(sj, config.method)
  start, end = window(config, total_steps)
  kwargs: dict[str, Any] = {
    "update_every": config.update_every,
    "start_step": start,
    "end_step": end,
    "distribution": getattr(sj, config.distribution),
    "seed": seed,
  }
  accepted = inspect.signature(method).parameters
  if "drop_fraction" in accepted:
    kwargs["drop_fraction"] = drop_fraction(config, total_steps)
  extra: Mapping[str, Any] = config.method_kwargs.to_dict()
  unknown = sorted(set(extra) - set(accepted))
  if unknown:
    raise errors.ConfigError(
      f"method_kwargs must be arguments of {config.method}"
      f" ({', '.join(accepted)}); got {', '.join(unknown)}"
    )
  return method(inner(config, total_steps), config.density, **{**kwargs, **extra})


def updates_masks(config: Config, total_steps: int) -> bool:
  """Returns whether a mask update comes during the run, or none is wanted."""
  start, end = window(config, total_steps)
  return config.method in _FIXED or start + config.update_every <= end


def due(config: Config, total_steps: int) -> Callable[[jax.Array], jax.Array]:
  """Returns `(count of updates so far) -> bool`: whether this update changes masks.

  The rule of `sj.sparsify`, for a counter that seeds trained side by side share: under
  `vmap` each seed's own counter would turn the branch into a select.

  Args:
    config: a complete config.
    total_steps: steps of the whole run.

  Returns:
    A function on int32 scalars, traced or not.
  """
  start, end = window(config, total_steps)

  def rule(count):
    after = count + 1 - start
    return (after > 0) & (after % config.update_every == 0) & (count < end)

  if config.method in _FIXED:
    return lambda count: jnp.zeros((), bool)
  return rule
