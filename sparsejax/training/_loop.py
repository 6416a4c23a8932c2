"""The training loop, from a config to a result: `train_and_evaluate`."""

import base64
import json
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import sparsejax as sj
from sparsejax.core import Pace
from sparsejax.training import (
  _checkpoint,
  _environment,
  _errors,
  _interrupt,
  _metrics,
  _optimizers,
  _picture,
  _progress,
  _result,
  _run,
  _step,
  _workdir,
)
from sparsejax.training.config import complete, to_json
from sparsejax.training.parallel import _distributed, _replicas


def train_and_evaluate(
  config: Mapping[str, Any],
  workdir: os.PathLike | str,
  verbose: bool = True,
  summarize: bool = True,
  writers: Sequence[_metrics.ScalarWriter] = (),
) -> _result.Result:
  """Trains and evaluates the network of a config, or resumes an interrupted run.

  It writes `config.json`, `environment.json`, `metrics.jsonl` and `checkpoints/` into
  the workdir, and at the end `summary.json` and `report.png`. Called again with the
  same config, it resumes from the last checkpoint, bit for bit; a finished run is not
  trained further, only its result is shown again. On SIGTERM or SIGINT it finishes the
  steps of about a second, writes a checkpoint and returns. Several processes, which
  must stop at the same step, first finish the `log_every` steps of the next record.

  Args:
    config: some or all fields of `default_config`; the others have their defaults.
    workdir: a directory for this run alone.
    verbose: whether to show progress and print the summary.
    summarize: whether to print the summary if verbose.
    writers: objects with `write_scalars(step, scalars)`, which receive the numbers of
      `metrics.jsonl`; steps that a resumed run repeats are passed to them again. An
      exception that one raises stops the run.

  Returns:
    A `Result`.

  Raises:
    TrainingError: before any work is done, if the config, the data set, the workdir or
      its checkpoints cannot be used. During training, `NonFiniteError` if no step of
      an epoch had a finite gradient, `ReplicaError` if the masks of replicas differ,
      and `CheckpointError` or `WorkdirError` if a file cannot be written.
  """
  _metrics.check_writers(writers)
  # All processes must have the same config.
  full = complete(config)
  stamp = to_json(full)
  _distributed.check_same("config", json.dumps(stamp, sort_keys=True))
  first = jax.process_index() == 0
  with _interrupt.listen() as stop, _workdir.exclusive(workdir) as path:
    with _distributed.sync_errors():
      _workdir.check(path, stamp)
      run = _run.prepare(full)
      # First of all files, so that a run killed from now on can be identified.
      if first:
        _workdir.claim(path, stamp)
    checkpoints = _checkpoint.Checkpoints(path, stamp)
    try:
      result = _train(run, path, checkpoints, stop, verbose and first, writers)
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
  """Returns the next step after `count` at which the loop logs.

  The loop logs every `log_every` steps of an epoch and at its end. The step depends on
  `count` alone, so a resumed run logs the same numbers as an uninterrupted one.

  Args:
    count: updates done so far.
    steps_per_epoch: steps per epoch.
    log_every: steps between two records, counted from the start of the epoch.

  Returns:
    A step above `count`.

  Example:
    >>> next_stop(0, 540, 200), next_stop(200, 540, 200), next_stop(400, 540, 200)
    (200, 400, 540)
  """
  position = count % steps_per_epoch
  to_log = log_every - position % log_every
  return count + min(to_log, steps_per_epoch - position)


class Interval(NamedTuple):
  """The part of a log interval that is trained, as its record needs it.

  Attributes:
    begin: the step of the last record of training.
    totals: the totals of the steps since, NumPy arrays of shape () or (seeds,).
    masks: the masks of step `begin`, to which the next record compares the masks.
  """

  begin: int
  totals: _step.Totals
  masks: Any


def interval_to_json(interval: Interval) -> dict[str, Any]:
  """Returns an interval as JSON values, with one bit per weight.

  Args:
    interval: the interval that a signal has divided; its arrays are on this process.

  Returns:
    A dict for the `extra` of a checkpoint.
  """
  return {
    "begin": interval.begin,
    "totals": [np.asarray(x).tolist() for x in interval.totals],
    "masks": [
      base64.b64encode(np.packbits(np.asarray(mask)).tobytes()).decode()
      for mask in jax.tree.leaves(interval.masks)
    ],
  }


def interval_from_json(values: dict[str, Any], state: _step.TrainState) -> Interval:
  """Returns the interval of a checkpoint.

  Args:
    values: the result of `interval_to_json`.
    state: the restored state, whose masks have the shapes and the shardings of those of
      the interval.

  Returns:
    The interval.
  """
  zeros = _step.no_totals(state.key.shape)
  totals: list[Any] = [
    np.asarray(x, o.dtype) for x, o in zip(values["totals"], zeros, strict=True)
  ]
  like, treedef = jax.tree.flatten(sj.masks(state.opt_state))
  masks = []
  for mask, text in zip(like, values["masks"], strict=True):
    bits = np.frombuffer(base64.b64decode(text), np.uint8)
    bits = np.unpackbits(bits, count=mask.size).reshape(mask.shape)
    masks.append(jax.device_put(bits.astype(bool), mask.sharding))
  return Interval(values["begin"], _step.Totals(*totals), treedef.unflatten(masks))


def _train(
  run: _run.Run,
  path: pathlib.Path,
  checkpoints: _checkpoint.Checkpoints,
  stop: _interrupt.Stop,
  verbose: bool,
  writers: Sequence[_metrics.ScalarWriter],
) -> _result.Result:
  """Trains from the last checkpoint, or from the first step, to the end or a signal."""
  config, program, total = run.config, run.program, run.total_steps
  started = time.monotonic()
  # Put the data on the devices, then restore the newest good checkpoint, if any.
  train, validation, test = _run.place_splits(run.dataset, run.layout)
  restored = checkpoints.restore(_run.target(run))
  state = None if restored is None else restored.state
  extra = {} if restored is None else restored.extra
  found = state is not None
  before = extra.get("seconds", 0.0)
  if state is None:
    state = _run.start(run, train)
  count = first = int(state.step)
  # Record what trains the run from here on, unless it is finished.
  if count < total:
    with _distributed.sync_errors():
      _environment.record(path, run, count)
  # Baselines for the first record: live weights, and a copy of the masks that counts
  # of dropped and grown weights refer to. A signal may have divided the interval that
  # the first record is about.
  rate = _optimizers.learning_rate(config, total)
  seen = jax.device_get(_run.observe(state))
  zeros, masks = _step.no_totals(state.key.shape), _run.turnover(state).masks
  interval = Interval(count, zeros, masks)
  if extra.get("interval"):
    interval = interval_from_json(extra["interval"], state)
  # `unmoved` counts mask updates that were due, `ever_moved` says per seed whether one
  # changed a mask. A resumed run may have converged, so it is taken to have moved.
  unmoved, ever_moved = 0, found
  order, pace = None, Pace()
  with (
    # -1 removes all records, those of the initial network too.
    _metrics.Writer(
      path, interval.begin if count else -1, config.tensorboard, writers
    ) as writer,
    _progress.Progress(total, count, verbose) as progress,
  ):
    stop.note = progress.note

    def stopped() -> bool:
      """Returns whether to stop within an interval, where processes do not agree."""
      return bool(stop) and jax.process_count() == 1

    def train_part(carry: Any, start: int, end: int) -> Any:
      return _replicas.advance(run, carry[0], train, order, start, end, carry[1])

    def evaluate() -> bool:
      """Logs the live weights per layer and the validation loss and accuracy.

      Returns:
        Whether it did. A signal may come first, except after the last step.
      """
      values = {"epoch": count / run.steps_per_epoch}
      if len(run.dataset.validation.labels):
        totals = program.evaluate(
          state, validation, lambda: count < total and stopped()
        )
        if totals is None:
          return False
        loss, accuracy = totals.means()
        values |= {"validation_loss": loss, "validation_accuracy": accuracy}
        if count:
          progress.update(count, validation_accuracy=f"{np.mean(accuracy):.2%}")
      writer.write(count, {**values, "density": seen.density, "live": seen.live})
      writer.write_masks(count, _run.named(masks), config.num_seeds)
      return True

    def seconds() -> float:
      return before + time.monotonic() - started

    def save() -> None:
      divided = interval_to_json(interval) if count > interval.begin else None
      checkpoints.save(count, state, {"seconds": seconds(), "interval": divided})

    # A new run evaluates its initial network, so that records begin at step 0.
    for message in _messages(run, restored, count):
      progress.note(message)
    if count < total:
      progress.note("Compiling the training program ...")
    if count == 0:
      evaluate()
    # Each pass trains up to the next step to log at, which is in the same epoch.
    while interval.begin < total and not _distributed.any_process(stop):
      # The order of the examples; a resumed run may be in the middle of its epoch.
      begin = interval.begin
      if order is None or begin % run.steps_per_epoch == 0:
        order = program.order(state)
      end = min(next_stop(begin, run.steps_per_epoch, config.log_every), total)
      (state, totals), count = pace.run(
        train_part, (state, interval.totals), count, end, stopped
      )
      interval = interval._replace(totals=totals)
      if count < end:
        seen = jax.device_get(_run.observe(state))
        break
      # Count live, dropped and grown weights; check budgets and that masked weights
      # are zero.
      loss, accuracy = totals.means()
      seen = jax.device_get(_run.observe(state))
      moved = _run.turnover(state, interval.masks)
      masks = moved.masks
      # Weights may be NaN without finite gradients, which has an error of its own.
      if not np.any(seen.stuck_steps):
        sj.check_sparse(state.params, state.opt_state)
      unmoved += run.schedule.number(begin, count)
      ever_moved |= np.asarray(moved.dropped + moved.grown) > 0
      # Show the numbers and write them to `metrics.jsonl`.
      epoch, position = divmod(count, run.steps_per_epoch)
      evaluates = count == total or not (position or epoch % config.eval_every)
      speed = progress.update(
        count,
        hold=evaluates and len(run.dataset.validation.labels) > 0,
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
      # At the end of an epoch or of the run: evaluate, stop if nothing is learnt, save.
      # A signal during the evaluation divides the interval before its end.
      if evaluates and not evaluate():
        break
      interval = Interval(count, zeros, masks)
      if position and count < total:
        continue
      if np.all(seen.stuck_steps >= run.steps_per_epoch):
        raise _errors.NonFiniteError(
          f"no step of epoch {epoch} had a finite gradient, so nothing was learnt; try"
          f" a learning_rate below {config.learning_rate}"
        )
      if epoch % config.checkpoint_every == 0 and count < total:
        save()
    # Save the last step, whether the run is finished or was stopped by a signal.
    new = count > first or not found
    if new:
      save()
    # The time of a finished run that is only shown again does not count.
    spent = seconds() if new else before
    # The test set is evaluated after the last step only.
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


def _messages(
  run: _run.Run, restored: _checkpoint.Restored | None, count: int
) -> list[str]:
  """Returns the notes and warnings to show before the first step."""
  c, total, messages = run.config, run.total_steps, []
  if run.schedule.every is not None and not run.schedule.number(0, total):
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
  again = " The steps after it are repeated." if restored.lost else ""
  return [*messages, f"Resuming at step {count:,} of {total:,}.{again}"]
