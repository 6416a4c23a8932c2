"""The sparse optimizer that a config describes."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from sparsejax import models
from sparsejax.core import is_kernel
from sparsejax.training import _at_initialization, _errors, _methods
from sparsejax.training._methods import METHODS

Config = Any  # a frozen config of `config.complete`


def learning_rate(config: Config, total_steps: int) -> optax.Schedule:
  """Returns `step -> learning rate`.

  `constant`; `step`: times `lr_decay_factor` after every `lr_decay_every` steps, or at
  each of `lr_decay_epochs`; `cosine`: to zero at the end of the run. During
  `warmup_epochs` it rises in a line from zero instead; the cosine begins after them.

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


def _after_warmup(config: Config, total_steps: int, warmup: int) -> optax.Schedule:
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
    t = jnp.clip(jnp.asarray(step, jnp.float32), 0, steps) / steps
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
  rate = learning_rate(config, total_steps)
  # optax gives in after so many errors in a row; the loop ends the run long before.
  return optax.apply_if_finite(
    unguarded(config, rate), max_consecutive_errors=2**31 - 1
  )


def unguarded(config: Config, rate: optax.Schedule) -> optax.GradientTransformation:
  """Returns the dense optimizer alone.

  Args:
    config: a complete config.
    rate: its learning rate, `step -> float`.

  Returns:
    An optax optimizer.
  """
  decay = config.weight_decay
  if config.optimizer == "adamw":
    chain = optax.adamw(rate, b1=config.momentum, weight_decay=decay)
  else:
    if config.optimizer == "adam":
      last = optax.adam(rate, b1=config.momentum)
    else:
      last = optax.sgd(rate, momentum=config.momentum, nesterov=config.momentum > 0)
    # L2: added to the gradient, before the momentum.
    chain = optax.chain(optax.add_decayed_weights(decay), last) if decay else last
  if config.lr_scales:
    chain = optax.chain(chain, models.scale_by_path(config.lr_scales.to_dict()))
  return chain


def make_tx(
  config: Config, total_steps: int, seed: Any
) -> optax.GradientTransformationExtraArgs:
  """Returns the sparse optimizer of a config.

  Args:
    config: a complete config.
    total_steps: steps of the whole run.
    seed: of the masks, an integer that may be traced.

  Returns:
    `<method>(inner, density, ...)`; `sj.static_sparse` for a method that prunes at
    initialization.

  Raises:
    ConfigError: if `method_kwargs` do not fit the method.
  """
  if METHODS[config.method].prunes_at_init:
    # The masks are put in place before the first step; until then any will do.
    names = ("where", "stacked", "input_axes")
    chosen = {k: v for k, v in config.method_kwargs.items() if k in names}
    if config.structure == "block":
      raise _errors.ConfigError(
        f"structure must be any for {config.method}, which prunes weight by weight;"
        " got 'block'"
      )
    dense = inner(config, total_steps)
    return sj.static_sparse(dense, config.density, seed=seed, **chosen)
  method = _methods.function(config.method)
  start, end = window(config, total_steps)
  fields: dict[str, Any] = {
    "update_every": config.update_every,
    "start_step": start,
    "end_step": end,
    "distribution": _at_initialization.distribution(config.distribution),
    "seed": seed,
    "drop_fraction": drop_fraction(config, total_steps),
  }
  accepted = inspect.signature(method).parameters
  if config.structure == "block":
    if "structure" not in accepted:
      raise _errors.ConfigError(
        f"structure must be any for {config.method}, which knows none; got 'block'"
      )
    fields |= {
      "structure": sj.block((config.block, config.block)),
      "where": _cut_evenly(config.block),
    }
  kwargs = {name: value for name, value in fields.items() if name in accepted}
  extra: Mapping[str, Any] = config.method_kwargs.to_dict()
  unknown = sorted(set(extra) - set(accepted))
  if unknown:
    raise _errors.ConfigError(
      f"method_kwargs must be arguments of {config.method}"
      f" ({', '.join(accepted)}); got {', '.join(unknown)}"
    )
  tx = method(inner(config, total_steps), config.density, **{**kwargs, **extra})
  tracked = config.track_exploration and METHODS[config.method].moves
  return sj.track_exploration(tx) if tracked else tx


def _cut_evenly(block: int) -> Callable[[str, Any], bool]:
  """Selects the kernels whose inputs and outputs are whole blocks."""

  def where(path, leaf):
    return is_kernel(path, leaf) and not any(n % block for n in leaf.shape[-2:])

  return where


def updates_masks(config: Config, total_steps: int) -> bool:
  """Returns whether a mask update comes during the run, or none is wanted."""
  start, end = window(config, total_steps)
  return not METHODS[config.method].moves or start + config.update_every <= end


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

  if not METHODS[config.method].moves:
    return lambda count: jnp.zeros((), bool)
  return rule


def due_updates(config: Config, total_steps: int, begin: int, end: int) -> int:
  """Returns how many mask updates are due in the steps from `begin` to `end`.

  Args:
    config: a complete config.
    total_steps: steps of the whole run.
    begin: updates done before.
    end: updates done after.

  Returns:
    A count; 0 for methods whose masks do not move.
  """
  rule: Callable[[Any], Any] = due(config, total_steps)
  return int(np.sum(np.asarray(rule(np.arange(begin, end)))))
