"""`top_k_mask` against a sort, and the facts it promises."""

import re

import chex
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sparsejax as sj
from sparsejax.core._selection import ordered_bits, put_first, select

SPECIAL = [0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e-40, -1e-40, 2.0, 0.5]


def by_sorting(scores, k, where=None):
  """The definition: order by score descending, then by linear index."""
  scores = np.asarray(scores, np.float64)
  valid = ~np.isnan(scores)
  if where is not None:
    valid &= np.asarray(where)
  flat = np.where(np.isnan(scores), 0.0, scores).ravel() + 0.0
  order = np.lexsort((np.arange(flat.size), -flat, ~valid.ravel()))
  mask = np.zeros(flat.size, bool)
  mask[order[: int(np.clip(k, 0, valid.sum()))]] = True
  return mask.reshape(scores.shape)


def test_table():
  """Worked by hand: ties to the first, both zeros alike, NaN never, -inf last."""
  nan, inf = np.nan, np.inf
  scores = jnp.array([1.0, -0.0, 2.0, 0.0, nan, -inf, 2.0, 1e-40, inf, -1e-40])
  order = [8, 2, 6, 0, 7, 1, 3, 9, 5]  # 9 candidates, best first
  for k in range(-1, 12):
    expected = np.zeros(10, bool)
    expected[order[: max(k, 0)]] = True
    np.testing.assert_array_equal(sj.top_k_mask(scores, k), expected, str(k))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_equals_sorting(data):
  shape = data.draw(st.sampled_from([(), (1,), (300,), (7, 5), (3, 3, 2, 4), (257, 2)]))
  dtype = data.draw(st.sampled_from(["float32", "bfloat16", "float16"]))
  elements = st.one_of(
    st.sampled_from(SPECIAL), st.floats(width=16), st.integers(-3, 3).map(float)
  )
  scores = jnp.asarray(data.draw(hnp.arrays(np.float32, shape, elements=elements)))
  scores = scores.astype(dtype)
  k = data.draw(st.integers(-2, scores.size + 2))
  where = None
  if data.draw(st.booleans()):
    where = jnp.asarray(data.draw(hnp.arrays(bool, shape)))
  mask = jitted(scores, k, where)
  # XLA may flush subnormals in conversions, so the reference reads the same bits.
  exact = np.asarray(scores).astype(np.float64)
  np.testing.assert_array_equal(mask, by_sorting(exact, k, where))


jitted = jax.jit(sj.top_k_mask)


def test_float64():
  with jax.enable_x64(True):
    tiny = np.float64(1) + np.arange(6) * np.finfo(np.float64).eps
    scores = jnp.asarray(tiny[::-1].copy())
    assert scores.dtype == jnp.float64
    np.testing.assert_array_equal(sj.top_k_mask(scores, 2), [1, 1, 0, 0, 0, 0])


def test_k_is_traced_and_compiles_once():
  chex.clear_trace_counter()
  f = jax.jit(chex.assert_max_traces(sj.top_k_mask, n=1))
  scores = jax.random.normal(jax.random.key(0), (33, 5))
  for k in (0, 1, 77, 165, 9999):
    np.testing.assert_array_equal(f(scores, k), by_sorting(scores, k))


def test_vmap_gives_each_row_its_own_k():
  scores = jax.random.normal(jax.random.key(0), (4, 6, 5)).at[2].set(0.0)
  k = jnp.array([0, 3, 17, 30])
  masks = jax.vmap(sj.top_k_mask)(scores, k)
  for row in range(4):
    np.testing.assert_array_equal(masks[row], by_sorting(scores[row], k[row]))


def test_many_tensors_at_once():
  """Stacked and plain tensors, of several dtypes, ties in some, in one search."""
  key = jax.random.key(1)
  scores = [
    jax.random.normal(key, (7, 9)),
    jax.random.normal(key, (3, 4, 5)),
    jnp.zeros((2, 50)),
    jax.random.normal(key, (40,)).astype(jnp.bfloat16),
  ]
  k = jnp.array([10, 0, 7, 20, 33, 40, 5], jnp.int32)
  search = jax.jit(lambda scores, k: select(scores, k, [None] * 4, [0, 1, 1, 0]))
  masks = search(scores, k)
  np.testing.assert_array_equal(masks[0], by_sorting(scores[0], 10))
  for row, n in enumerate((0, 7, 20)):
    np.testing.assert_array_equal(masks[1][row], by_sorting(scores[1][row], n))
  for row, n in enumerate((33, 40)):
    np.testing.assert_array_equal(masks[2][row], by_sorting(scores[2][row], n))
  np.testing.assert_array_equal(masks[3], by_sorting(scores[3].astype(jnp.float32), 5))


def test_counts_past_24_bits():
  """A float32 counter would stop at 2^24; these are all ties, too."""
  n = 2**24 + 3
  mask = jitted(jnp.zeros((n // 4783, 4783), jnp.bfloat16), n // 4783 * 4783 - 2, None)
  assert int(jnp.sum(mask, dtype=jnp.int32)) == n // 4783 * 4783 - 2
  assert not bool(mask[-1, -1])
  assert not bool(mask[-1, -2])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
  "spec", [P("a"), P(None, "b"), P("a", None, "b"), P(("a", "b"))]
)
def test_sharded_is_the_same_and_moves_counts_only(kind, spec):
  scores = jax.random.normal(jax.random.key(0), (64, 24, 16))
  scores = jnp.where(jnp.abs(scores) < 0.3, 0.0, scores)
  expected = by_sorting(scores, 15_000)
  mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind,) * 2)
  sharded = jax.device_put(scores, NamedSharding(mesh, spec))
  with jax.set_mesh(mesh):
    compiled = jitted.lower(sharded, 15_000, None).compile()
    mask = compiled(sharded, 15_000, None)
  np.testing.assert_array_equal(mask, expected)
  assert mask.sharding.is_equivalent_to(sharded.sharding, 3)
  text = compiled.as_text()
  assert not re.search(r"(all-gather|all-to-all|collective-permute|sort)[-\w]*\(", text)
  sizes = re.findall(r"= \w+\[([\d,]*)\]\S* all-reduce", text)
  assert sizes
  assert sum(int(np.prod([int(n) for n in s.split(",") if n])) for s in sizes) < 256


def test_never_sorts_or_reshapes():
  text = str(jax.make_jaxpr(sj.top_k_mask)(jnp.zeros((8, 8)), 3))
  assert not re.search(r"= (sort|top_k|gather|cumsum)\[", text)
  # Counts are reshaped, the tensor never is.
  shapes = re.findall(r":\w+\[([\d,]*)\] = reshape", text)
  assert set(shapes) <= {"", "1"}


def test_order_of_bits():
  values = np.array(
    [-np.inf, -1.0, -1e-40, -0.0, 0.0, 1e-40, 1e-38, 1.0, np.inf], np.float32
  )
  image = np.asarray(ordered_bits(jnp.asarray(values))).astype(np.int64)
  assert image[3] == image[4]
  assert (np.diff(image)[[0, 1, 2, 4, 5, 6, 7]] > 0).all()
  assert int(ordered_bits(jnp.array([jnp.nan]))[0]) == 0 < image[0]


def test_split_k_is_one_selection_over_all_layers():
  key = jax.random.key(0)
  scores = [jax.random.normal(key, (5, 8)), jax.random.normal(key, (30,)) * 2]
  scores[1] = scores[1].at[:3].set(scores[0][0, 0])
  where = [jnp.ones((5, 8), bool), jnp.arange(30) != 7]
  both = jnp.concatenate([scores[0].ravel(), scores[1]])
  candidates = jnp.concatenate([where[0].ravel(), where[1]])
  split = jax.jit(sj.split_k)
  for k in (0, 1, 20, 35, 69, 100):
    whole = by_sorting(both, k, candidates)
    expected = [whole[:40].sum(), whole[40:].sum()]
    np.testing.assert_array_equal(split(scores, k, where), expected)


@pytest.mark.parametrize(
  ("args", "error", "message"),
  [
    ((jnp.arange(3), 1), TypeError, "scores must be floating point, got int32"),
    ((jnp.zeros(3), 1.0), TypeError, "k must be an integer, got float32"),
    (
      (jnp.zeros(3), jnp.array([1])),
      ValueError,
      r"k must be a scalar, got shape \(1,\)",
    ),
    ((jnp.zeros(3), 1, jnp.zeros(3)), TypeError, "where must be bool, got float32"),
    (
      (jnp.zeros(3), 1, jnp.ones(2, bool)),
      ValueError,
      r"where must have the shape .*3",
    ),
  ],
)
def test_bad_input(args, error, message):
  with pytest.raises(error, match=message):
    sj.top_k_mask(*args)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_put_first_ranks_a_group_first_and_keeps_both_orders(dtype):
  """Of tiny, adjacent and huge scores, which an offset of the group would round."""
  scores = jnp.asarray([0, 1e-9, 0.1, 0.1, 1.0, 3e4], dtype)
  scores = scores.at[3].set(jnp.nextafter(scores[2], scores[4]))
  scores = jnp.concatenate([scores, scores])
  ranks = np.asarray(put_first(scores, jnp.arange(12) >= 6))
  assert ranks.dtype == dtype
  distinct = len(np.unique(scores))  # 1e-9 is zero in float16
  assert len(np.unique(ranks)) == 2 * distinct
  np.testing.assert_array_equal(np.argsort(ranks, stable=True), np.arange(12))
  assert np.isnan(put_first(jnp.asarray([jnp.nan], dtype), jnp.array([False])))
