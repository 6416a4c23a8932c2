"""Lottery ticket experiments: train, prune, rewind, again, and the controls beside.

A level is trained for all seeds, then written; an experiment that is stopped goes on
with the level that is not there. What there is to a level is in `lottery_levels`.
"""

import functools
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import lottery
from sparsejax.core.leaves import path_string
from sparsejax.training import errors, interrupt
from sparsejax.training import lottery_config as config_lib
from sparsejax.training import lottery_levels as levels
from sparsejax.training import lottery_setup as setup_lib
from sparsejax.training import progress as progress_lib
from sparsejax.training import workdir as workdir_lib
from sparsejax.training.lottery_levels import Cell
from sparsejax.training.lottery_setup import Setup

PyTree = Any
_CONTROL, _MASK = 101, 102  # what keys are folded with, beside a level
DENSE, INITIAL, REWIND = Cell("dense", 0), Cell("rewind", 0), Cell("rewind", 1)


def run_experiment(
  config: Mapping[str, Any],
  workdir: os.PathLike | str,
  verbose: bool = True,
  commit: str = "",
) -> list[Cell]:
  """Runs an experiment, or goes on with one; levels that are there are not done again.

  Args:
    config: some or all fields of `lottery_config.default_config`.
    workdir: a directory for this experiment alone. More rounds, controls or one-shot
      levels may be asked for later.
    verbose: whether to show progress.
    commit: of the program, kept beside each level.

  Returns:
    All cells that are done.

  Raises:
    TrainingError: before any work is done, if the config, the data set, the workdir or
      a level in it cannot be used; a `NonFiniteError` where a training diverged.
    KeyboardInterrupt: if a signal came; the level under way is begun anew next time.
  """
  setup = setup_lib.prepare(config)
  with interrupt.listen() as stop, workdir_lib.exclusive(workdir) as path:
    workdir_lib.check(path, setup.stamp)
    wanted = plan(setup.config)
    digest = config_lib.digest(setup.stamp)
    missing = [cell for cell in wanted if not levels.done(path, cell, digest)]
    if DENSE not in missing:
      for point in (INITIAL, REWIND):
        levels.done(path, point, digest)
        levels.read_weights(path, point, _stacked(setup, setup.like))
    workdir_lib.claim(path, setup.stamp)
    for i, cell in enumerate(missing):
      with progress_lib.Progress(_total(setup, cell), 0, verbose) as progress:
        progress.note(f"{cell.kind}, level {cell.level} [{i + 1} of {len(missing)}]")
        _run_cell(setup, path, cell, digest, stop, progress, commit)
    return levels.cells(path)


def plan(config: Any) -> list[Cell]:
  """Returns the cells of an experiment in the order in which they are trained.

  A control follows its ticket, so that what is done first can be compared first.

  Args:
    config: a complete config.

  Returns:
    Cells, each after those that it needs.

  Example:
    >>> c = config_lib.complete({"rounds": 1, "controls": {"reinit": (1,)}})
    >>> [f"{cell.kind} {cell.level}" for cell in plan(c)]
    ['dense 0', 'ticket 1', 'reinit 1']
  """
  cells = [DENSE]
  for level in range(1, config.rounds + 1):
    cells.append(Cell("ticket", level))
    cells += [Cell(k, level) for k, at in config.controls.items() if level in at]
  return cells + [Cell("one_shot", level) for level in config.one_shot_levels]


def _total(setup: Setup, cell: Cell) -> int:
  first = 0 if cell == DENSE else setup.config.rewind_step
  return setup.config.train.num_seeds * (setup.steps - first)


def _run_cell(setup, path, cell, digest, stop, progress, commit) -> None:
  started = time.monotonic()
  if cell == DENSE:
    masks = jax.tree.map(
      lambda m: jnp.ones(m.shape, bool), _stacked(setup, setup.masks)
    )
    members = _dense_start(setup, path, digest, masks)
    population = _train(setup, members, setup.dense, cell, stop, progress)
  else:
    (params, state), masks = start(setup, path, cell)
    members = _members(setup, setup.restarted, params, state, masks)
    if setup.config.mask_zero != "zero":
      members = members._replace(params=_held(setup, path, params, masks))
    population = _train(setup, members, setup.restarted, cell, stop, progress)
  if not np.isfinite(population.validation_loss[:, -1]).all():
    raise errors.NonFiniteError(
      f"{cell.kind}, level {cell.level}, ended with a validation loss that is not"
      f" finite; try a learning_rate below {setup.config.train.learning_rate}"
    )
  last = population.members
  live = {
    path_string(p): np.asarray(m).reshape(len(m), -1).sum(1).tolist()
    for p, m in jax.tree_util.tree_leaves_with_path(masks)
  }
  sizes = [m[0].size for m in jax.tree.leaves(masks)]
  metrics = {
    "live": live,
    "density": (np.sum(list(live.values()), axis=0) / sum(sizes)).tolist(),
    "start": 0 if cell == DENSE else setup.config.rewind_step,
    "steps": population.steps.tolist(),
    "validation_loss": _rounded(population.validation_loss),
    "early_stop": population.early_stop.tolist(),
    "measured": population.measured.tolist(),
    "measurements": {k: _rounded(v) for k, v in population.measurements.items()},
    "at_early_stop": {k: _rounded(v) for k, v in population.at_early_stop.items()},
    "seconds": round(time.monotonic() - started, 1),
    "commit": commit,
  }
  levels.write(
    path,
    cell,
    digest,
    weights=(last.params, last.model_state),
    masks=masks,
    metrics=metrics,
  )


def start(setup: Setup, path: pathlib.Path, cell: Cell) -> tuple[PyTree, PyTree]:
  """Returns what a cell is trained from, all stacked over seeds.

  Args:
    setup: of `lottery_setup.prepare`.
    path: the experiment's directory.
    cell: any but the dense one; those that it needs are done.

  Returns:
    `((params, model_state), masks)`.

  Raises:
    CheckpointError: if what it needs is not there.
    ConfigError: if the fraction to be pruned would leave a layer empty.
  """
  c = setup.config
  like = _stacked(setup, setup.like)
  read = functools.partial(levels.read_weights, path, like=like)
  if cell.kind not in ("ticket", "one_shot"):
    ticket = Cell("ticket", cell.level)
    masks = levels.read_masks(path, ticket, _stacked(setup, setup.masks))
    return control(setup, cell, read(REWIND), masks)
  rounds = 1
  before = Cell("ticket", cell.level - 1) if cell.level > 1 else DENSE
  if cell.kind == "one_shot":
    rounds, before = cell.level, DENSE
  initial, final = read(INITIAL)[0], read(before)
  masks = levels.read_masks(path, before, _stacked(setup, setup.masks))
  masks = prune_seeds(c, initial, final[0], masks, rounds)
  return (read(REWIND) if c.restart == "rewind" else final), masks


def prune_seeds(
  config: Any, initial: PyTree, final: PyTree, masks: PyTree, rounds: int = 1
) -> PyTree:
  """Prunes each seed's network as the config says.

  Args:
    config: a complete config.
    initial: params (seeds, ...) at step 0.
    final: params (seeds, ...) after training.
    masks: bool (seeds, ...).
    rounds: how many at once: `1 - (1 - rate)^rounds` goes.

  Returns:
    Masks (seeds, ...).

  Raises:
    ConfigError: if that would leave a layer empty.
  """

  def at_once(rate):
    return 1 - (1 - rate) ** rounds

  rates = {name: at_once(r) for name, r in config.prune_rates.to_dict().items()}
  all_keys, several = setup_lib.keys(config), []
  for seed in range(config.train.num_seeds):
    first, last, live = jax.tree.map(
      lambda x, seed=seed: jnp.asarray(x[seed]), (initial, final, masks)
    )
    key = jax.random.fold_in(all_keys[seed], _MASK)

    def score(params, masks, first=first, key=key):
      return lottery.criterion(config.criterion, first, params, masks, key)

    try:
      several.append(
        lottery.prune(
          last,
          live,
          at_once(config.prune_fraction),
          scope=config.scope,
          rates=rates,
          score=score,
        )
      )
    except ValueError as e:
      raise errors.ConfigError(f"prune_fraction, prune_rates or rounds: {e}") from e
  return jax.tree.map(lambda *m: jnp.stack(m), *several)


def control(
  setup: Setup, cell: Cell, rewound: PyTree, masks: PyTree
) -> tuple[PyTree, PyTree]:
  """Returns what a control is trained from, all stacked over seeds.

  reinit: other weights under the ticket's masks;  reinit_signs: the same with the
  signs of the rewound ones;  reshuffle, constant: see `lottery.mask_one`;
  random: the rewound weights under masks shuffled within layers;  random_reinit: both.

  Args:
    setup: of `lottery_setup.prepare`.
    cell: the control and its level.
    rewound: `(params, model_state)` that the ticket was rewound to.
    masks: of the ticket.

  Returns:
    `((params, model_state), masks)`.
  """
  name = cell.kind

  def one(key, params, state, masks):
    key = jax.random.fold_in(jax.random.fold_in(key, _CONTROL), cell.level)
    fresh = lambda key: setup.init(key)[0]
    if name.startswith("random"):
      masks = lottery.random_masks(masks, jax.random.fold_in(key, 1))
    action = "reinit" if "reinit" in name else name
    if name == "random":
      action = "rewind"
    signs = name == "reinit_signs"
    params = lottery.mask_one(action, params, masks, key, fresh=fresh, keep_signs=signs)
    return params, state, masks

  all_keys = setup_lib.keys(setup.config)
  params, state, masks = jax.jit(jax.vmap(one))(all_keys, *rewound, masks)
  return (params, state), masks


def _dense_start(setup, path, digest, masks):
  """Fresh networks; with them the point is written that all later ones begin from."""
  c = setup.config
  params, state = jax.jit(jax.vmap(setup.init))(setup_lib.keys(c))
  levels.write(path, INITIAL, digest, weights=(params, state))
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
    ).members
  levels.write(path, REWIND, digest, weights=(members.params, members.model_state))
  return members


def _train(setup, members, tx, cell, stop, progress) -> lottery.Population:
  c = setup.config
  first = c.rewind_step
  live = [np.asarray(m) for m in jax.tree.leaves(members.opt_state.masks)]
  density = float(sum(m.sum() for m in live)) / sum(m.size for m in live)
  looks = np.arange(first - first % c.eval_every, setup.steps + 1, c.eval_every)[1:]
  at = [n for n in range(c.measure_every, setup.steps, c.measure_every) if n > first]
  at += looks[-c.last_evaluations :].tolist()

  def show(done, count, losses):
    if stop:
      raise KeyboardInterrupt
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
  )


def _members(setup, tx, params, state, masks):
  return lottery.stack_members(tx, setup_lib.keys(setup.config), params, masks, state)


def _held(setup, path, params, masks):
  """Params whose masked weights stand where Zhou et al.'s mask-0 action puts them."""
  read = functools.partial(levels.read_weights, path, like=_stacked(setup, setup.like))
  values = lottery.mask_zero(
    setup.config.mask_zero, read(INITIAL)[0], read(DENSE)[0], masks
  )
  return jax.tree.map(
    lambda v, p, m: v if m is None else jnp.where(m, p, v),
    values,
    params,
    masks,
    is_leaf=lambda x: x is None,
  )


def _stacked(setup: Setup, tree: PyTree) -> PyTree:
  n = setup.config.train.num_seeds
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct((n, *x.shape), x.dtype), tree)


def _rounded(values) -> list:
  # Seven digits hold a float32; more would only be noise in the file.
  return (
    [[float(f"{v:.7g}") for v in row] for row in np.atleast_2d(values)]
    if np.ndim(values) == 2
    else [float(f"{v:.7g}") for v in np.asarray(values)]
  )
