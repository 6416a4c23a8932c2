"""The runner of lottery ticket experiments: train, prune, rewind, and train controls.

Each level is trained for all seeds and then written. A stopped experiment resumes with
the first level that is missing. `_levels` reads and writes levels; `_start` computes
the initial weights and masks of a level.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import lottery
from sparsejax.core import path_string
from sparsejax.experiments.lottery import _config, _levels, _setup, _start
from sparsejax.experiments.lottery._config import LotteryConfig
from sparsejax.experiments.lottery._levels import Arm
from sparsejax.experiments.lottery._start import DENSE, INITIAL, REWIND
from sparsejax.training import (
  NonFiniteError,
  Progress,
  check_workdir,
  claim_workdir,
  environment,
  exclusive_workdir,
  listen_for_signals,
)

PyTree = Any


def run_experiment(
  config: Mapping[str, Any],
  workdir: os.PathLike | str,
  verbose: bool = True,
) -> list[Arm]:
  """Runs or resumes an experiment; levels that are already written are not repeated.

  Args:
    config: some or all fields of `default_config`.
    workdir: a directory for this experiment alone. Rounds, controls and one-shot levels
      can be added by a later call.
    verbose: whether to show progress.

  Returns:
    All finished arms.

  Raises:
    TrainingError: before any work is done, if the config, the data set, the workdir or
      a level in it cannot be used; as a `NonFiniteError`, if a training diverged.
    KeyboardInterrupt: a signal was received; the interrupted level starts again in the
      next call.
  """
  # Check the workdir and the levels in it, then train the arms that are missing.
  setup = _setup.prepare(config)
  with listen_for_signals() as stop, exclusive_workdir(workdir) as path:
    check_workdir(path, setup.stamp)
    wanted = list_arms(setup.config)
    digest = _config.digest(setup.stamp)
    missing = [arm for arm in wanted if not _levels.done(path, arm, digest)]
    if DENSE not in missing:
      for point in (INITIAL, REWIND):
        _levels.done(path, point, digest)
        _levels.read_weights(path, point, _start.stacked(setup, setup.like))
    claim_workdir(path, setup.stamp)
    # Every training is shown from the rewind step on, the dense one too.
    total = setup.config.train.num_seeds * (setup.steps - setup.config.rewind_step)
    for i, arm in enumerate(missing):
      with Progress(total, 0, verbose) as progress:
        stop.note = progress.note
        progress.note(f"{arm.kind}, level {arm.level} [{i + 1} of {len(missing)}]")
        _run_arm(setup, path, arm, digest, stop, progress)
    return _levels.arms(path)


def list_arms(config: LotteryConfig) -> list[Arm]:
  """Returns the arms of an experiment in the order in which they are trained.

  A control follows its ticket, so that finished levels can be compared early.

  Args:
    config: a complete config.

  Returns:
    Arms, each after those that it needs.

  Example:
    >>> c = _config.complete({"rounds": 1, "controls": {"reinit": (1,)}})
    >>> [f"{arm.kind} {arm.level}" for arm in list_arms(c)]
    ['dense 0', 'ticket 1', 'reinit 1']
  """
  arms = [DENSE]
  for level in range(1, config.rounds + 1):
    arms.append(Arm("ticket", level))
    arms += [Arm(k, level) for k, at in config.controls.items() if level in at]
  return arms + [Arm("one_shot", level) for level in config.one_shot_levels]


def _run_arm(setup, path, arm, digest, stop, progress) -> None:
  # Train the arm from its initial weights and masks.
  started = time.monotonic()
  if arm == DENSE:
    masks = jax.tree.map(
      lambda m: jnp.ones(m.shape, bool), _start.stacked(setup, setup.masks)
    )
    members = _dense_start(setup, path, digest, masks, stop)
    population = _train(setup, members, setup.dense, arm, stop, progress)
  else:
    (params, state), masks = _start.start(setup, path, arm)
    members = _members(setup, setup.restarted, params, state, masks)
    if setup.config.mask_zero != "zero":
      members = members._replace(params=_start.held(setup, path, params, masks))
    population = _train(setup, members, setup.restarted, arm, stop, progress)
  if not np.isfinite(population.validation_loss[:, -1]).all():
    raise NonFiniteError(
      f"{arm.kind}, level {arm.level}, ended with a validation loss that is not"
      f" finite; try a learning_rate below {setup.config.train.learning_rate}"
    )
  # Write the trained weights, the masks and the metrics of all seeds.
  last = population.members
  live = {
    path_string(p): np.asarray(m).reshape(len(m), -1).sum(1).tolist()
    for p, m in jax.tree_util.tree_leaves_with_path(masks)
  }
  sizes = [m[0].size for m in jax.tree.leaves(masks)]
  metrics = {
    "live": live,
    "density": (np.sum(list(live.values()), axis=0) / sum(sizes)).tolist(),
    "start": 0 if arm == DENSE else setup.config.rewind_step,
    "steps": population.steps.tolist(),
    "validation_loss": _rounded(population.validation_loss),
    "early_stop": population.early_stop.tolist(),
    "measured": population.measured.tolist(),
    "measurements": {k: _rounded(v) for k, v in population.measurements.items()},
    "at_early_stop": {k: _rounded(v) for k, v in population.at_early_stop.items()},
    "seconds": round(time.monotonic() - started, 1),
    "run": environment(),
  }
  _levels.write(
    path,
    arm,
    digest,
    weights=(last.params, last.model_state),
    masks=masks,
    metrics=metrics,
  )


def _dense_start(setup, path, digest, masks, stop):
  """Initializes networks and trains to the rewind step; writes the weights of both."""
  c = setup.config
  params, state = jax.jit(jax.vmap(setup.init))(_setup.keys(c))
  _levels.write(path, INITIAL, digest, weights=(params, state))
  members = _members(setup, setup.dense, params, state, masks)
  if c.rewind_step:
    members = lottery.train_population(
      setup.loss,
      setup.dense,
      members,
      setup.data,
      batch_size=c.train.batch_size,
      steps=c.rewind_step,
      together=c.together or None,
      stopped=lambda: bool(stop),
    ).members
  _levels.write(path, REWIND, digest, weights=(members.params, members.model_state))
  return members


def _train(setup, members, tx, arm, stop, progress) -> lottery.Population:
  # Measure every `measure_every` steps, and at the last `last_evaluations` validations.
  c = setup.config
  first = c.rewind_step
  live = [np.asarray(m) for m in jax.tree.leaves(members.opt_state.masks)]
  density = float(sum(m.sum() for m in live)) / sum(m.size for m in live)
  looks = np.arange(first - first % c.eval_every, setup.steps + 1, c.eval_every)[1:]
  at = [n for n in range(c.measure_every, setup.steps, c.measure_every) if n > first]
  at += looks[-c.last_evaluations :].tolist()

  # Called at each validation.
  def show(done, count, losses):
    progress.update(
      done * (setup.steps - first) + len(losses) * (count - first),
      loss=f"{losses[:, -1].mean():.4f}",
      density=f"{density:.4f}",
    )

  return lottery.train_population(
    setup.loss,
    tx,
    members,
    setup.data,
    batch_size=c.train.batch_size,
    start=first,
    steps=setup.steps,
    validate=setup.validate,
    every=c.eval_every,
    measure=setup.measure,
    measure_at=sorted({*at}),
    held_out=setup.held_out,
    together=c.together or None,
    progress=show,
    stopped=lambda: bool(stop),
  )


def _members(setup, tx, params, state, masks):
  return lottery.stack_members(tx, _setup.keys(setup.config), params, masks, state)


def _rounded(values) -> list:
  # Seven digits are the precision of float32.
  return np.vectorize(lambda v: float(f"{v:.7g}"), otypes=[float])(values).tolist()
