"""The loop of all training: batches follow from the step, however it is cut."""

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core import _epochs as epochs


def _seen(order, stops, size):
  """The examples of each step, from a loop that is left and entered at `stops`."""

  @jax.jit
  def run(seen, start, stop):
    return epochs.run_steps(
      lambda seen, indices, count: seen.at[count].set(indices),
      seen,
      order,
      start,
      stop,
      size,
    )

  seen = jnp.full((stops[-1], size), -1)
  for start, stop in zip([0, *stops], stops, strict=False):
    seen = run(seen, start, stop)
  return np.asarray(seen)


def test_steps_take_consecutive_parts_and_drop_the_rest():
  order = epochs.epoch_order(jax.random.key(3), 0, 11)
  seen = _seen(order, [5], 2)
  np.testing.assert_array_equal(seen.ravel(), order[:10])
  np.testing.assert_array_equal(_seen(order, [1, 4, 5], 2), seen)


def test_calls_last_about_a_second(monkeypatch):
  """A step takes 1/128 s, and the first call compiles for 30 s."""
  now, calls = [0.0], []
  monkeypatch.setattr(epochs.time, "monotonic", lambda: now[0])

  def part(carry, start, stop):
    now[0] += (stop - start) / 128 + 30 * (not calls)
    calls.append(stop - start)
    return [*carry, *range(start, stop)]

  pace = epochs.Pace()
  done, reached = pace.run(part, [], 3, 300, lambda: False)
  assert (done, reached) == (list(range(3, 300)), 300)
  assert calls == [1, 1, 8, 64, 128, 95]
  # It is asked before each call, and does no step after that.
  now[0] = 0.0
  done, reached = pace.run(part, [], 0, 300, lambda: now[0] >= 0.5)
  assert (done, reached) == (list(range(128)), 128)
  assert pace.run(part, [], 5, 300, lambda: True) == ([], 5)
  # Steps that take longer than a call should take are called one by one.
  slow = epochs.Pace(seconds=0.005)
  slow.run(part, [], 0, 3, lambda: False)
  assert calls[-3:] == [1, 1, 1]


def test_orders_follow_from_key_and_epoch():
  key = jax.random.key(0)
  first, again, next_, other = (
    epochs.epoch_order(epochs.salted(key, salt), epoch, 100)
    for salt, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))
  )
  np.testing.assert_array_equal(first, again)
  for order in (first, next_, other):
    assert sorted(order.tolist()) == list(range(100))
  assert np.mean(first != next_) > 0.9
  assert np.mean(first != other) > 0.9


def test_salts_are_folded_in_their_order():
  key = jax.random.key(0)
  expected = jax.random.fold_in(jax.random.fold_in(key, 7), 3)
  assert epochs.salted(key, 7, 3) == expected
  assert epochs.salted(key) == key
