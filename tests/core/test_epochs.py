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
