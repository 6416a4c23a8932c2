"""Instability analysis: two trainings from one point with different data orders."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import lottery
from sparsejax.core import salted
from sparsejax.experiments.lottery import _config, _levels, _setup, _start
from sparsejax.experiments.lottery._levels import Arm
from sparsejax.experiments.lottery._setup import Setup
from sparsejax.training import (
  ConfigError,
  Progress,
  check_workdir,
  claim_workdir,
  environment,
  exclusive_workdir,
  listen_for_signals,
)

_ORDERS = 103  # folded into a seed's key for the two data orders
POINTS = 30


def run_instability(
  config: Mapping[str, Any],
  workdir: os.PathLike | str,
  steps: Sequence[int],
  level: int = 0,
  verbose: bool = True,
) -> dict[int, np.ndarray]:
  """Measures how stable networks are to the noise of SGD, from different steps.

  For each step k and seed, a network is trained to step k, then two copies of it are
  trained to the end with different data orders and augmentations. The instability is
  that of the test error on the line between the two. Running averages are interpolated
  like weights.

  Args:
    config: the config of an experiment; see `run_experiment`.
    workdir: the experiment's directory. Steps that are already measured are not
      repeated.
    steps: the steps k.
    level: 0 for the dense network, or the level of a ticket. For a ticket, the level
      before must be finished, and k must be the config's `rewind_step`.
    verbose: whether to show progress.

  Returns:
    By step, the instability of each seed, in percentage points of test error; see
    `sparsejax.lottery.instability`.

  Raises:
    TrainingError: the config, the workdir or a level in it cannot be used.
    KeyboardInterrupt: a signal was received.
  """
  setup = _setup.prepare(config)
  c = setup.config
  for k in steps:
    if not 0 <= k < setup.steps:
      raise ConfigError(f"steps must be in [0, {setup.steps}); got {k}")
    if level and k != c.rewind_step:
      raise ConfigError(
        f"steps must be rewind_step ({c.rewind_step}) for a ticket; got {k}"
      )
  digest, kind = _config.digest(setup.stamp), f"instability_{level:02d}"
  with listen_for_signals() as stop, exclusive_workdir(workdir) as path:
    check_workdir(path, setup.stamp)
    claim_workdir(path, setup.stamp)
    for k in steps:
      arm = Arm(kind, k)
      if _levels.done(path, arm, digest):
        continue
      total = c.train.num_seeds * (k * (not level) + 2 * (setup.steps - k))
      with Progress(total, 0, verbose) as progress:
        stop.note = progress.note
        progress.note(f"instability from step {k}")
        stopped = lambda: bool(stop)
        _measure(setup, path, arm, digest, level, _shown(progress), stopped)
    return {
      k: np.asarray(_levels.read_metrics(path, Arm(kind, k))["instability"])
      for k in steps
    }


def _shown(progress):
  count = 0

  def show(steps):
    nonlocal count
    count += steps
    progress.update(count, loss="-")

  return show


def _measure(setup: Setup, path, arm, digest, level, show, stopped) -> None:
  c, k = setup.config, arm.level
  keys = _setup.keys(c)

  def train(tx, members, start, steps):
    every = min(c.eval_every, steps - start)
    return lottery.train_population(
      setup.loss,
      tx,
      members,
      setup.data,
      batch_size=c.train.batch_size,
      start=start,
      steps=steps,
      every=every,
      together=c.together or None,
      progress=lambda done, at, losses: show(every * len(losses)),
      stopped=stopped,
    ).members

  # Create the networks of step k, one per seed.
  if level:
    (params, state), masks = _start.start(setup, path, Arm("ticket", level))
    members = lottery.stack_members(setup.restarted, keys, params, masks, state)
    tx = setup.restarted
  else:
    params, state = jax.jit(jax.vmap(setup.init))(keys)
    tx = setup.dense
    members = lottery.stack_members(tx, keys, params, None, state)
    if k:
      members = train(tx, members, 0, k)
  # Train two copies of each with different keys, which determine data and augmentation.
  orders = jax.vmap(lambda key: jax.random.split(salted(key, _ORDERS)))(keys)
  ends = [
    train(tx, members._replace(key=orders[:, i]), k, setup.steps) for i in range(2)
  ]
  first, second = ((e.params, e.model_state) for e in ends)

  # Measure the test error on the line between the two, one seed at a time.
  def test_error(network):
    return 100 * (1 - setup.measure(*network, setup.held_out)["test_accuracy"])

  line = jax.jit(lambda a, b: lottery.error_on_line(test_error, a, b, POINTS))
  found = []
  for seed in range(c.train.num_seeds):
    a, b = jax.tree.map(lambda x, seed=seed: x[seed], (first, second))
    found.append(line(a, b))
    if stopped():
      raise KeyboardInterrupt
  curves = jnp.stack(found)
  metrics = {
    "errors": np.round(np.asarray(curves, float), 4).tolist(),
    "instability": np.round(lottery.instability(curves), 4).tolist(),
    "run": environment(),
  }
  _levels.write(path, arm, digest, weights=(first, second), metrics=metrics)
