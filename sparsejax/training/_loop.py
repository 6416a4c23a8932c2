"""Training from a config to a result: `train_and_evaluate`."""

import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import sparsejax as sj
from sparsejax.training import (
  _checkpoint,
  _config,
  _environment,
  _errors,
  _interrupt,
  _metrics,
  _optimizers,
  _picture,
  _program,
  _progress,
  _result,
  _run,
  _workdir,
)
from sparsejax.training import data as data_lib
from sparsejax.training.data import _stream
from sparsejax.training.parallel import _distributed, _replicas


def train_and_evaluate(
  config: Mapping[str, Any],
  workdir: os.PathLike | str,
  verbose: bool = True,
  summarize: bool = True,
) -> _result.Result:
  """Trains a network sparse from the first step to the last, or goes on doing so.

  The workdir then holds `config.json`, `environment.json`, `metrics.jsonl` and
  `checkpoints/`, and at the end `summary.json` and `report.png`. Called again with the
  same config it goes on where it was stopped, bit for bit; a finished run is only shown
  again. SIGTERM and SIGINT make it write a checkpoint and return.

  Args:
    config: some or all fields of `default_config`; the rest is at its default.
    workdir: a directory for this run alone.
    verbose: whether to show progress and print the summary.
    summarize: whether to print the summary if verbose.

  Returns:
    A `Result`.

  Raises:
    TrainingError: before any work is done, if the config, the data set, the workdir or
      its checkpoints cannot be used; or later a `NonFiniteError`, if a whole epoch gave
      no finite gradient.
  """
  complete = _config.complete(config)
  stamp = _config.to_json(complete)
  _distributed.check_same("config", json.dumps(stamp, sort_keys=True))
  first = jax.process_index() == 0
  with _interrupt.listen() as stop, _workdir.exclusive(workdir) as path:
    with _distributed.sync_errors():
      _workdir.check(path, stamp)
      run = _run.prepare(complete)
      # Before anything else is there: a run killed now must be known for what it is.
      if first:
        _workdir.claim(path, stamp)
    checkpoints = _checkpoint.Checkpoints(path, stamp)
    try:
      result = _train(run, path, checkpoints, stop, verbose and first)
    finally:
      checkpoints.close()
    with _distributed.sync_errors():
      if result.finished and first:
        _result.write(path, result)
        _picture.write(path, run, result)
    if verbose and summarize:
      _result.show(result, path)
    return result


def next_stop(count: int, steps_per_epoch: int, log_every: int) -> int:
  """Returns the step at which the part of the run that begins at `count` ends.

  It follows from the step alone, so that a run that was stopped logs the same numbers
  as one that was not.

  Args:
    count: updates done so far.
    steps_per_epoch: parts end with their epoch.
    log_every: and every so many steps of it.

  Returns:
    A step above `count`.

  Example:
    >>> next_stop(0, 540, 200), next_stop(200, 540, 200), next_stop(400, 540, 200)
    (200, 400, 540)
  """
  position = count % steps_per_epoch
  to_log = log_every - position % log_every
  return count + min(to_log, steps_per_epoch - position)


def _train(
  run: _run.Run,
  path: pathlib.Path,
  checkpoints: _checkpoint.Checkpoints,
  stop: _interrupt.Stop,
  verbose: bool,
) -> _result.Result:
  config, program, total = run.config, run.program, run.total_steps
  started = time.monotonic()
  train, validation, test = _placed(run)
  restored = checkpoints.restore(_run.target(run))
  state = None if restored is None else restored.state
  found = state is not None
  before = 0.0 if restored is None else restored.extra.get("seconds", 0.0)
  if state is None:
    state = _run.start(run, train)
  count = first = int(state.step)
  if count < total:
    with _distributed.sync_errors():
      _environment.record(path, run, count)
  rate = _optimizers.learning_rate(config, total)
  seen = jax.device_get(_run.observe(state))
  moved = _run.turnover(state)
  # Mask updates that were due while none changed a mask, per seed; a resumed run may
  # have settled, and is not counted.
  unmoved, ever_moved = 0, found
  order = None
  with (
    # What a run wrote whose first checkpoint never came is written again, all of it.
    _metrics.Writer(path, count if found else -1, config.tensorboard) as writer,
    _progress.Progress(total, count, verbose) as progress,
  ):

    def evaluate() -> None:
      """Logs the layers' live weights, and the accuracy on what was held out."""
      values = {"epoch": count / run.steps_per_epoch}
      if len(run.dataset.validation.labels):
        loss, accuracy = program.evaluate(state, validation).means()
        values |= {"validation_loss": loss, "validation_accuracy": accuracy}
        if count:
          progress.update(count, accuracy=f"{np.mean(accuracy):.2%}")
      writer.write(count, {**values, "density": seen.density, "live": seen.live})

    def seconds() -> float:
      return before + time.monotonic() - started

    def save() -> None:
      checkpoints.save(count, state, {"seconds": seconds()})

    for message in _messages(run, restored, count):
      progress.note(message)
    if count == 0:
      evaluate()
    while count < total and not _distributed.any_process(stop):
      if order is None or count % run.steps_per_epoch == 0:
        order = program.order(state)
      begin, count = count, next_stop(count, run.steps_per_epoch, config.log_every)
      state, totals = _replicas.advance(run, state, train, order, begin, count)
      loss, accuracy = totals.means()
      seen = jax.device_get(_run.observe(state))
      moved = _run.turnover(state, moved.masks)
      sj.check_sparse(state.params, state.opt_state)
      unmoved += _optimizers.due_updates(config, total, begin, count)
      ever_moved |= np.asarray(moved.dropped + moved.grown) > 0
      speed = progress.update(
        count,
        loss=f"{np.mean(loss):.4f}",
        train_accuracy=f"{np.mean(accuracy):.2%}",
        density=f"{np.mean(seen.density):.4f}",
      )
      progress.skipped(np.sum(seen.skipped_steps), np.sum(seen.skipped_mask_updates))
      if not np.all(ever_moved):
        progress.unmoved(unmoved)
      writer.write(
        count,
        {
          "epoch": count / run.steps_per_epoch,
          "train_loss": loss,
          "train_accuracy": accuracy,
          "learning_rate": np.asarray(rate(count - 1)),
          "density": seen.density,
          "dropped": np.asarray(moved.dropped),
          "grown": np.asarray(moved.grown),
          **({} if seen.explored is None else {"explored": seen.explored}),
          "skipped_steps": seen.skipped_steps,
          "skipped_mask_updates": seen.skipped_mask_updates,
          "steps_per_second": speed,
        },
      )
      epoch, position = divmod(count, run.steps_per_epoch)
      if position:
        continue
      if epoch % config.eval_every == 0 or count == total:
        evaluate()
      if np.all(seen.stuck_steps >= run.steps_per_epoch):
        raise _errors.NonFiniteError(
          f"no step of epoch {epoch} had a finite gradient, so nothing was learnt; try"
          f" a learning_rate below {config.learning_rate}"
        )
      if epoch % config.checkpoint_every == 0 and count < total:
        save()
    new = count > first or not found
    if new:
      save()
    spent = seconds() if new else before  # a finished run is only shown again
    accuracy = loss = np.full(config.num_seeds, np.nan)
    if count == total:
      loss, accuracy = program.evaluate(state, test).means()
  return _result.Result(
    finished=count == total,
    stopped_by=stop.signal if count < total else None,
    step=count,
    total_steps=total,
    test_accuracy=np.atleast_1d(accuracy),
    test_loss=np.atleast_1d(loss),
    density=float(np.mean(seen.density)),
    skipped_steps=np.atleast_1d(seen.skipped_steps),
    skipped_mask_updates=np.atleast_1d(seen.skipped_mask_updates),
    seconds=spent,
    state=state,
  )


def _placed(run: _run.Run) -> tuple[Any, Any, Any]:
  """The splits on the devices, padded for evaluation; a stream stays what it is."""
  splits = run.dataset[:3]
  if isinstance(run.dataset.train, _stream.Stream):
    return splits
  shards = run.layout.shards if run.layout else 1

  def padded(split: data_lib.Split) -> data_lib.Split:
    return data_lib.pad(split, _program.evaluation_batch(len(split.labels), shards))

  return _run.place((splits[0], *map(padded, splits[1:])), run.layout)


def _messages(
  run: _run.Run, restored: _checkpoint.Restored | None, count: int
) -> list[str]:
  c, total, messages = run.config, run.total_steps, []
  if not _optimizers.updates_masks(c, total):
    messages.append(
      f"Note: update_every is {c.update_every} and the run has {total:,} steps, so"
      f" {c.method} never updates its masks."
    )
  if restored is None:
    return messages
  messages += [f"Warning: {message}." for message in restored.lost]
  if restored.state is None:
    return [*messages, "The run begins at its first step."]
  if count == total:
    return [*messages, f"This run is finished: all {total:,} steps are done."]
  again = " The steps after it are done again." if restored.lost else ""
  return [*messages, f"Going on at step {count:,} of {total:,}.{again}"]
