"""Builds the schedules and the sparse optimizer of a config."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

import sparsejax as sj
from sparsejax import models
from sparsejax.core import is_kernel
from sparsejax.training import _at_initialization, _errors, _methods
from sparsejax.training._methods import METHODS
from sparsejax.training.config import TrainConfig, n_of_m
from sparsejax.transforms import UpdateSchedule


def learning_rate(config: TrainConfig, total_steps: int) -> optax.Schedule:
  """Returns the learning-rate schedule, `step -> learning rate`.

  `constant`: the learning rate. `step`: multiplied by `lr_decay_factor` after every
  `lr_decay_every` steps, or at each of `lr_decay_epochs`. `cosine`: decays to zero at
  the end of the run. During `warmup_epochs` the rate rises linearly from zero instead;
  the cosine begins after the warm-up.

  Args:
    config: a complete config.
    total_steps: steps of the whole run.

  Returns:
    An optax schedule.
  """
  steps_per_epoch = total_steps / config.num_epochs
  warmup = round(config.warmup_epochs * steps_per_epoch)
  after = _after_warmup(config, total_steps, warmup)
  if not warmup:
    return after

  def schedule(step):
    line = jnp.asarray(step + 1, jnp.float32) * (config.learning_rate / warmup)
    return jnp.where(step < warmup, line, after(step))

  return schedule


def _after_warmup(config: TrainConfig, total_steps: int, warmup: int) -> optax.Schedule:
  """Returns the schedule for the steps after the warm-up, in steps of the run."""
  peak, factor = config.learning_rate, config.lr_decay_factor
  if config.lr_schedule == "constant":
    return optax.constant_schedule(peak)
  if config.lr_schedule == "cosine":
    cosine = _cosine(peak, 0.0, total_steps - warmup)
    return lambda step: cosine(step - warmup)
  if not config.lr_decay_epochs:
    return optax.exponential_decay(peak, config.lr_decay_every, factor, staircase=True)
  steps_per_epoch = total_steps / config.num_epochs
  ends = np.round(np.asarray(config.lr_decay_epochs) * steps_per_epoch).astype(np.int32)
  return lambda step: peak * factor ** jnp.sum(step >= ends).astype(jnp.float32)


def update_schedule(config: TrainConfig, total_steps: int) -> UpdateSchedule:
  """Returns the schedule of mask updates.

  The start is one step later than the config says: a mask update that falls on the end
  of an epoch is done in the first step of the next, so that the epoch is evaluated
  before it, as in the papers' code. The end is before the last step, because a mask
  update in the last step would leave grown weights that were never trained.

  Args:
    config: a complete config.
    total_steps: steps of the whole run.

  Returns:
    An `UpdateSchedule`, without mask updates for methods whose masks do not change.
  """
  return UpdateSchedule(
    start=round(config.start_fraction * total_steps) + 1,
    end=min(round(config.end_fraction * total_steps), total_steps - 1),
    every=config.update_every if METHODS[config.method].moves else None,
  )


def drop_fraction(config: TrainConfig, total_steps: int) -> optax.Schedule:
  """Returns the drop-fraction schedule: a cosine, then constant at its final value.

  `final + (first - final) (1 + cos(pi min(step, end) / end)) / 2`.

  The cosine begins at step 0, and `end` is the step of the config's `end_fraction`.

  Args:
    config: a complete config.
    total_steps: steps of the whole run.

  Returns:
    An optax schedule.
  """
  end = max(1, round(config.end_fraction * total_steps))
  return _cosine(config.drop_fraction, config.final_drop_fraction, end)


def _cosine(first: float, final: float, steps: int) -> optax.Schedule:
  # optax's cosine schedule mixes integer steps and floats, which strict promotion
  # forbids.
  def schedule(step):
    t = jnp.clip(jnp.asarray(step, jnp.float32), 0, steps) / steps
    return final + (first - final) * (1 + jnp.cos(jnp.pi * t)) / 2

  return schedule


def inner(config: TrainConfig, total_steps: int) -> optax.GradientTransformation:
  """Returns the dense optimizer, which skips steps with a non-finite gradient.

  Args:
    config: a complete config.
    total_steps: steps of the whole run.

  Returns:
    An optax optimizer whose state counts the skipped steps.
  """
  rate = learning_rate(config, total_steps)
  # After so many errors in a row optax applies them; the loop raises long before.
  return optax.apply_if_finite(
    unguarded(config, rate), max_consecutive_errors=2**31 - 1
  )


def unguarded(
  config: TrainConfig, rate: optax.Schedule
) -> optax.GradientTransformation:
  """Returns the dense optimizer without the check for non-finite gradients.

  Args:
    config: a complete config.
    rate: the learning-rate schedule, `step -> float`.

  Returns:
    An optax optimizer.

  Raises:
    ConfigError: if `optimizer_kwargs` has an argument that the optimizer lacks.
  """
  name, decay = config.optimizer, config.weight_decay
  make = getattr(optax, name, None) or getattr(optax.contrib, name)
  accepted = inspect.signature(make).parameters
  unknown = sorted(set(config.optimizer_kwargs) - set(accepted))
  if unknown:
    raise _errors.ConfigError(
      f"optimizer_kwargs must be arguments of {name} ({', '.join(accepted)}); got"
      f" {', '.join(unknown)}"
    )
  # Pass the fields that the optimizer has an argument for.
  kwargs: dict[str, Any] = {}
  if "momentum" in accepted:
    kwargs["momentum"] = config.momentum
  elif "b1" in accepted:
    kwargs["b1"] = config.momentum
  if name == "sgd":
    kwargs["nesterov"] = config.momentum > 0
  if "key" in accepted:  # noisy_sgd
    kwargs["key"] = jax.random.key(config.seed)
  decays = [k for k in ("weight_decay", "weight_decay_rate") if k in accepted]
  kwargs |= dict.fromkeys(decays, decay)
  chain = make(rate, **{**kwargs, **config.optimizer_kwargs})
  if decay and not decays:
    # L2: added to the gradient, before the momentum.
    chain = optax.chain(optax.add_decayed_weights(decay), chain)
  if config.lr_scales:
    chain = optax.chain(chain, models.scale_by_path(dict(config.lr_scales)))
  return chain


def make_tx(
  config: TrainConfig, total_steps: int, seed: Any
) -> optax.GradientTransformationExtraArgs:
  """Returns the sparse optimizer of a config.

  Args:
    config: a complete config.
    total_steps: steps of the whole run.
    seed: the seed of the masks, an integer that may be traced.

  Returns:
    `<method>(inner, density, ...)`; `sj.static_sparse` for a method that prunes at
    initialization.

  Raises:
    ConfigError: if `method_kwargs` or `structure` do not fit the method.
  """
  if METHODS[config.method].prunes_at_init:
    # The method's masks replace the random ones of `static_sparse` before the first
    # step.
    names = ("where", "stacked", "input_axes")
    chosen = {k: v for k, v in config.method_kwargs.items() if k in names}
    if config.structure != "any":
      raise _errors.ConfigError(
        f"structure must be any for {config.method}, which prunes weight by weight;"
        f" got {config.structure!r}"
      )
    dense = inner(config, total_steps)
    return sj.static_sparse(dense, config.density, seed=seed, **chosen)
  # Pass the method those fields of the config that it has an argument for.
  method = _methods.function(config.method)
  schedule = update_schedule(config, total_steps)
  fields: dict[str, Any] = {
    "update_every": config.update_every,
    "start_step": schedule.start,
    "end_step": schedule.end,
    "distribution": _at_initialization.distribution(config.distribution),
    "seed": seed,
    "drop_fraction": drop_fraction(config, total_steps),
  }
  accepted = inspect.signature(method).parameters
  if config.structure != "any":
    if "structure" not in accepted:
      raise _errors.ConfigError(
        f"structure must be any for {config.method}, which knows none; got"
        f" {config.structure!r}"
      )
    if counts := n_of_m(config.structure):
      fields |= {"structure": sj.n_m(*counts), "where": _cut_evenly(counts[1], 1)}
    else:
      side = config.block
      fields |= {"structure": sj.block((side, side)), "where": _cut_evenly(side, side)}
  # `method_kwargs` take precedence over the fields.
  kwargs = {name: value for name, value in fields.items() if name in accepted}
  extra = _methods.resolve_kwargs(config.method, config.method_kwargs)
  tx = method(inner(config, total_steps), config.density, **{**kwargs, **extra})
  tracked = config.track_exploration and METHODS[config.method].moves
  return sj.track_exploration(tx) if tracked else tx


def _cut_evenly(inputs: int, outputs: int) -> Callable[[str, Any], bool]:
  """Returns a `where` that selects kernels that divide into parts of this shape."""

  def where(path, leaf):
    if not is_kernel(path, leaf):
      return False
    return not (leaf.shape[-2] % inputs or leaf.shape[-1] % outputs)

  return where
