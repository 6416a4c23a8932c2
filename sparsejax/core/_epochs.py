"""Keys, orders of examples and the compiled loop that all training shares."""

import time
from collections.abc import Callable
from typing import Any

import jax

PyTree = Any


def salted(key: jax.Array, *salts: jax.Array | int) -> jax.Array:
  """Returns a key for one use: folds integers into a key, one after the other.

  Args:
    key: a PRNG key that is used in no other way than this.
    *salts: int32, a constant per use, then counters such as the step.

  Returns:
    A key that is independent of those of other salts.

  Example:
    >>> key = jax.random.key(0)
    >>> bool(salted(key, 1, 5) == salted(key, 5, 1))
    False
  """
  for salt in salts:
    key = jax.random.fold_in(key, salt)
  return key


def epoch_order(key: jax.Array, epoch: jax.Array | int, examples: int) -> jax.Array:
  """Draws the order of the examples in an epoch.

  Args:
    key: the PRNG key of all epochs.
    epoch: int32, the number of the epoch, from 0.
    examples: the number of examples.

  Returns:
    int32 (examples,), a permutation that the key and the epoch alone determine.

  Example:
    >>> sorted(epoch_order(jax.random.key(0), 3, 4).tolist())
    [0, 1, 2, 3]
  """
  return jax.random.permutation(jax.random.fold_in(key, epoch), examples)


def run_steps(
  step: Callable[[PyTree, jax.Array, jax.Array], PyTree],
  carry: PyTree,
  order: jax.Array,
  start: jax.Array | int,
  stop: jax.Array | int,
  batch_size: int,
) -> PyTree:
  """Runs the steps from `start` to `stop`, which are in the same epoch.

  A loop over a traced number of steps is as fast as `scan`, is compiled once for all
  lengths, and is much faster on CPUs than calling a jitted step from Python. As the
  step's number determines its batch, a resumed run ends bit for bit like one that was
  not interrupted.

  Args:
    step: `(carry, indices, count) -> carry`: one update on the examples at `indices`,
      int32 (..., batch_size), after `count` others.
    carry: what the steps change, such as the state of training.
    order: int32 (..., examples), the order of the examples in this epoch; with leading
      axes, one per network that is trained. Those that do not fill a batch are left
      out.
    start: int32, the updates done so far; may be traced.
    stop: int32, the updates to reach; may be traced.
    batch_size: examples per step.

  Returns:
    The last carry.

  Example:
    >>> import jax.numpy as jnp
    >>> total = lambda carry, indices, count: carry + jnp.sum(indices)
    >>> int(run_steps(total, jnp.int32(0), jnp.arange(7), 4, 6, batch_size=2))
    14
  """
  steps_per_epoch = order.shape[-1] // batch_size

  def body(count, carry):
    first = count % steps_per_epoch * batch_size
    indices = jax.lax.dynamic_slice_in_dim(order, first, batch_size, axis=-1)
    return step(carry, indices, count)

  return jax.lax.fori_loop(start, stop, body, carry)


class Pace:
  """Cuts a compiled loop into calls of about one second, so that signals are heard.

  Python runs signal handlers between two calls only. The steps per call follow from the
  time of the call before; they are arguments of the compiled program, so no length is
  compiled anew. The first call, which may compile, has one step, and a call has at most
  eight times as many as the one before, because that one may have been cheap by chance.

  Args:
    seconds: the time that a call should take.

  Example:
    >>> pace = Pace()
    >>> add = lambda total, start, stop: total + sum(range(start, stop))
    >>> pace.run(add, 0, 2, 6, stopped=lambda: False)
    (14, 6)
    >>> pace.run(add, 0, 2, 6, stopped=lambda: True)
    (0, 2)
  """

  def __init__(self, seconds: float = 1.0):
    self._seconds, self._steps = seconds, 1

  def run(
    self,
    part: Callable[[PyTree, int, int], PyTree],
    carry: PyTree,
    start: int,
    stop: int,
    stopped: Callable[[], bool],
  ) -> tuple[PyTree, int]:
    """Runs the steps from `start` to `stop`, or until it is asked to stop.

    The calls of several processes must agree, which measured times do not, so there
    all steps are one call.

    Args:
      part: `(carry, start, stop) -> carry`, runs these steps.
      carry: what the steps change.
      start: the steps done so far.
      stop: the steps to reach.
      stopped: `() -> bool`, called before each call of `part`; True ends the loop.

    Returns:
      The last carry, and the steps reached: `stop` unless it was asked to stop.
    """
    several = jax.process_count() > 1
    while start < stop and not stopped():
      end = stop if several else min(stop, start + self._steps)
      began = time.monotonic()
      carry = jax.block_until_ready(part(carry, start, end))
      per_step = max(time.monotonic() - began, 1e-9) / (end - start)
      self._steps = max(1, min(int(self._seconds / per_step), 8 * self._steps))
      start = end
    return carry, start
