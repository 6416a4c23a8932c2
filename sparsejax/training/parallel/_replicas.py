"""Training steps on a mesh that compare the replicas' masks after each mask update."""

from typing import Any

import jax
import numpy as np

import sparsejax as sj
from sparsejax.core import check_replicas
from sparsejax.training import _errors, _run, _step


def advance(
  run: _run.Run,
  state: _step.TrainState,
  train: Any,
  order: Any,
  count: int,
  stop: int,
  totals: _step.Totals,
) -> tuple[_step.TrainState, _step.Totals]:
  """Trains up to step `stop`; on a mesh, compares the masks after each mask update.

  Args:
    run: the `Run` returned by `prepare`.
    state: the state after `count` updates; donated.
    train: as in `Program.run`.
    order: as in `Program.run`.
    count: updates done so far.
    stop: the number of updates to reach, in the same epoch.
    totals: the totals of earlier steps, to which those of these steps are added.

  Returns:
    The state, and the totals as NumPy arrays.

  Raises:
    ReplicaError: if masks differ between replicas; names the step and two checksums.
  """
  # Run up to the next mask update or `stop`. The totals return to the host, because
  # arguments with another sharding would compile the program again.
  while count < stop:
    update = None if run.layout is None else run.schedule.next_after(count)
    count = stop if update is None else min(stop, update)
    state, totals = run.program.run(state, train, order, np.int32(count), totals)
    totals = jax.device_get(totals)
    if count == update:
      compare(state, count)
  return state, totals


def compare(state: _step.TrainState, count: int) -> int:
  """Checks that all replicas have the same masks, and returns their checksum.

  Args:
    state: the state of a run on a mesh.
    count: updates done so far.

  Returns:
    The checksum.

  Raises:
    ReplicaError: if masks differ between replicas; names the step and two checksums.
  """
  try:
    return check_replicas(sj.masks(state.opt_state))
  except RuntimeError as e:
    raise _errors.ReplicaError(f"after step {count}: {e} The run is stopped.") from e
