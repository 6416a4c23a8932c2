"""Apportionment against exact fractions, and means that no layout changes."""

from fractions import Fraction

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sparsejax.core._budgets import (
  apportion,
  from_vector,
  layer_sizes,
  live_counts,
  mean_scores,
  to_vector,
)

L = 5
jitted = jax.jit(apportion)


def by_fractions(weights, amount, capacities):
  """Largest remainder with capacities, in rational arithmetic."""
  amount = min(max(amount, 0), sum(capacities))
  full = [c == 0 for c in capacities]
  while True:
    left = amount - sum(c for c, f in zip(capacities, full, strict=True) if f)
    shares = [0 if f else w for w, f in zip(weights, full, strict=True)]
    if sum(shares) == 0:
      shares = [0 if f else c for c, f in zip(capacities, full, strict=True)]
    whole = sum(shares) or 1
    exact = [Fraction(left * s, whole) for s in shares]
    over = [not f and e >= c for f, e, c in zip(full, exact, capacities, strict=True)]
    if not any(over):
      break
    full = [f or o for f, o in zip(full, over, strict=True)]
  floors = [int(e) for e in exact]
  given = [c if f else n for c, f, n in zip(capacities, full, floors, strict=True)]
  rest = [-1 if f else e - n for f, e, n in zip(full, exact, floors, strict=True)]
  for i in sorted(range(len(rest)), key=lambda i: (-rest[i], i))[: amount - sum(given)]:
    given[i] += 1
  return given


@settings(max_examples=150, deadline=None)
@given(
  weights=st.lists(
    st.integers(0, 2**31 - 1) | st.integers(0, 5), min_size=L, max_size=L
  ),
  capacities=st.lists(
    st.integers(0, 2**30) | st.integers(0, 9), min_size=L, max_size=L
  ),
  amount=st.integers(-3, 2**31 - 1) | st.integers(0, 40),
)
def test_apportion_is_exact(weights, capacities, amount):
  got = jitted(np.int32(weights), np.int32(amount), np.int32(capacities))
  assert got.dtype == jnp.int32
  assert got.tolist() == by_fractions(weights, amount, capacities)


def test_apportion_table():
  """Worked by hand."""
  # 10 in proportion 1 : 1 : 8 with room for 4 in the last: 4, and 6 halved.
  assert apportion(jnp.array([1, 1, 8]), 10, jnp.array([9, 9, 4])).tolist() == [3, 3, 4]
  # Remainders 1/3, 1/3, 1/3: the tie goes to the first layer.
  assert apportion(jnp.array([1, 1, 1]), 4, jnp.array([9, 9, 9])).tolist() == [2, 1, 1]
  # Nobody has a share: the fallback decides.
  none = jnp.zeros(3)
  given = apportion(none, 6, jnp.array([9, 9, 9]), fallback=jnp.array([3, 1, 2]))
  assert given.tolist() == [3, 1, 2]
  # The only share is full: the rest by room.
  given = apportion(jnp.array([1.0, 0.0, 0.0]), 7, jnp.array([3, 8, 8]))
  assert given.tolist() == [3, 2, 2]


def test_totals_past_32_bits():
  sizes = jnp.full((4,), 2**31 - 1, jnp.int32)
  with jax.enable_x64(True):
    amount = jnp.int64(3 * 2**31)
    given = apportion(sizes, amount, sizes)
  assert sum(map(int, given)) == 3 * 2**31
  assert max(given) - min(given) <= 1


def test_vector_round_trip():
  tree = {"a": jnp.int32(3), "b": jnp.array([1, 2]), "c": None}
  vector = to_vector(tree)
  assert vector.tolist() == [3, 1, 2]
  back = from_vector(vector, tree)
  assert back["c"] is None
  assert back["a"].ndim == 0
  assert back["b"].tolist() == [1, 2]


def test_counts_and_sizes_of_stacked_leaves():
  masks = [jnp.ones((2, 3), bool), jnp.array([[[True, False]], [[False, False]]])]
  budgets = [jnp.int32(0), jnp.zeros(2, jnp.int32)]
  assert live_counts(masks, budgets).tolist() == [6, 1, 0]
  assert layer_sizes(masks, budgets) == [6, 2, 2]


def test_mean_scores_table():
  masks = [jnp.array([[True, True, False]]), jnp.zeros((2, 2), bool)]
  scores = [jnp.array([[3.0, -1.0, 100.0]]), jnp.ones((2, 2))]
  means = mean_scores(scores, masks, [jnp.int32(0)] * 2)
  assert means.tolist() == [1.5, 0.0]  # the negative counts as zero; none live: 0


def test_mean_scores_do_not_depend_on_the_layout():
  """A float sum does: 8 of 20 kernels differ between one device and eight."""
  mesh = jax.make_mesh((8,), ("d",))
  f = jax.jit(mean_scores)
  for seed in range(3):
    key = jax.random.key(seed)
    score = jax.random.exponential(key, (256, 40)) * 10.0 ** (-8 * seed)
    mask = jax.random.bernoulli(key, 0.3, (256, 40))
    alone = f([score], [mask], [jnp.int32(0)])
    exact = np.asarray(score, np.float64)[np.asarray(mask)].mean()
    np.testing.assert_allclose(alone, [exact], rtol=1e-6)
    for spec in (P("d"), P(None, "d")):
      place = NamedSharding(mesh, spec)
      spread = f(
        [jax.device_put(score, place)], [jax.device_put(mask, place)], [jnp.int32(0)]
      )
      assert spread.tolist() == alone.tolist()
