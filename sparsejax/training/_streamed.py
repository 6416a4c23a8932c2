"""The functions of a `Program` for data sets that are read batch by batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core import salted
from sparsejax.training import _step
from sparsejax.training.data import _stream
from sparsejax.training.parallel import _mesh
from sparsejax.transforms import UpdateSchedule


def functions(
  step: Callable[..., Any],
  evaluate: Callable[..., Any],
  normalize: Callable[[jax.Array], jax.Array],
  *,
  batch_size: int,
  schedule: UpdateSchedule,
  order_stream: int,
  layout: _mesh.Layout | None,
  places: Any,
) -> dict[str, Callable[..., Any]]:
  """Builds the functions of a `Program` that read examples.

  Args:
    step: `(state, images, labels, update_masks) -> (state, Totals)`; jitted here.
    evaluate: `(state, images, labels) -> Totals`; jitted here.
    normalize: normalizes a batch of images.
    batch_size: examples per training step and per evaluation batch.
    schedule: see `make_program`.
    order_stream: the number folded into the run's key for the order of the examples.
    layout: the mesh; None for one device.
    places: the shardings of the state; None on one device.

  Returns:
    A dict with `order`, `batches`, `run` and `evaluate`; see `Program`.
  """
  whole = None if layout is None else layout.replicated
  step = jax.jit(step, donate_argnums=0, out_shardings=(places, whole))
  evaluate = jax.jit(evaluate, out_shardings=whole)
  # The open reader by the number of its next batch, so that `run` does not start a new
  # one at each call.
  open_at: dict[int, Any] = {}

  def reader(state, train: _stream.Stream, count: int):
    """Returns an iterator whose next batch is number `count`."""
    if count in open_at:
      return open_at.pop(count)
    bits = jax.random.bits(salted(state.key, order_stream))
    seed = int(jax.device_get(bits)) % 2**31
    open_at.clear()
    return train.batches(count, batch_size, seed, layout)

  def run(state, train, order, stop, totals):
    """Trains from `state.step` to `stop` with one call of the jitted step per batch."""
    del order  # the reader shuffles
    count = int(state.step)
    batches = reader(state, train, count)
    while count < stop:
      images, labels = next(batches)
      flag = np.asarray(schedule.due(np.int32(count + 1)))
      state, new = step(state, images, labels, flag)
      totals = _add(totals, new)
      count += 1
    open_at[count] = batches
    return state, totals

  def first_batches(state, train, n):
    batches = reader(state, train, 0)
    taken = [next(batches) for _ in range(n)]
    return [[(normalize(images), labels) for images, labels in taken]]

  def evaluate_all(state, split, stopped=None):
    size = min(batch_size, len(split.labels))
    if layout is not None:
      size = -(-size // layout.shards) * layout.shards
    totals = _step.no_totals()
    for batch in split.in_order(size, layout):
      if stopped is not None and stopped():
        return None
      totals = _add(totals, evaluate(state, *batch))
    return totals

  return {
    "order": lambda state: None,
    "batches": first_batches,
    "run": run,
    "evaluate": evaluate_all,
  }


@jax.jit
def _add(totals: _step.Totals, new: _step.Totals) -> _step.Totals:
  """Adds totals in the order of the batches, however the steps are cut into calls."""
  return jax.tree.map(jnp.add, totals, new)
