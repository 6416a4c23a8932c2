"""Structures by themselves: tables worked out by hand, and exact counts everywhere."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsejax as sj
from sparsejax.core._kernel_axes import plain_axes
from sparsejax.core.structures._units import exact_sums

INF = float("inf")
TRUE, FALSE = True, False


def column(*values):
  return jnp.asarray(values, jnp.float32)[:, None]


def call(f, *args):
  """One compiled call: eagerly, every loop would compile by itself."""
  return jax.jit(f)(*args)


def select(structure, scores, count, where=None):
  where = jnp.ones_like(scores, bool) if where is None else where
  return np.asarray(call(structure.select, scores, jnp.int32(count), where))


def test_n_m_takes_the_best_of_each_group():
  scores = jnp.asarray(
    [[1.0, 2, -INF, 9], [3, 2, -INF, -1], [3, 2, -INF, -2], [0, 2, 1, 8]]
  )
  expected = [[0, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1]]
  np.testing.assert_array_equal(select(sj.n_m(2, 4), scores, 8), expected)


def test_strided_groups_are_the_weights_a_stride_apart():
  scores = column(1, 4, 2, 3)
  adjacent = select(sj.n_m(1, 2), scores, 2)
  strided = select(sj.n_m(1, 2, groups="strided"), scores, 2)
  assert adjacent.ravel().tolist() == [0, 1, 0, 1]  # {0, 1} and {2, 3}
  assert strided.ravel().tolist() == [0, 1, 1, 0]  # {0, 2} and {1, 3}


def test_n_m_drops_inside_groups_and_fills_them_again():
  structure = sj.n_m(2, 4)
  live = column(1, 1, 0, 0, 0, 1, 0, 1) > 0
  scores = column(5, 1, 0, 0, 0, 3, 0, 4)
  # Three may stay: the best of each group, then the best of the seconds.
  kept = call(structure.keep, scores, jnp.int32(3), live)
  assert kept.ravel().tolist() == [1, 0, 0, 0, 0, 1, 0, 1]
  growth = column(0, 1, 7, 2, 9, 0, 9, 0)
  masks, budget = call(structure.fill, growth, jnp.int32(4), kept, live)
  assert masks.ravel().tolist() == [1, 0, 1, 0, 0, 1, 0, 1]
  assert int(budget) == 4


def test_blocks_are_cut_from_the_last_two_axes_and_ranked_by_their_score():
  scores = jnp.asarray([[1.0, 1, 9, 0], [1, 1, 0, 0], [3, 3, 0, 0], [3, 3, 0, 8]])
  by_sum = select(sj.block((2, 2)), scores, 8)
  by_max = select(sj.block((2, 2), score="max"), scores, 8)
  np.testing.assert_array_equal(by_sum[::2, ::2], [[0, 1], [1, 0]])
  np.testing.assert_array_equal(by_max[::2, ::2], [[0, 1], [0, 1]])
  np.testing.assert_array_equal(by_sum[::2, ::2], by_sum[1::2, 1::2])


def test_a_channel_is_live_as_a_whole():
  scores = jnp.asarray([[1.0, 2, 3, 9], [1, 2, 3, -INF]])
  mask = select(sj.channel(-1), scores, 4)
  np.testing.assert_array_equal(mask, [[0, 1, 1, 0]] * 2)
  # "Never" is taken when nothing else is left.
  assert select(sj.channel(-1), scores, 8).all()


def test_constant_fan_in_fills_each_neuron():
  structure = sj.constant_fan_in()
  scores = jnp.asarray([[9.0, 1, 2], [8, 1, 2], [7, 1, 3], [6, 0, 3]])
  expected = [[1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 1]]
  np.testing.assert_array_equal(select(structure, scores, 6), expected)
  live = jnp.asarray(expected) > 0
  # The drop is the layer's: neuron 1 loses both of its inputs and gets two others.
  kept = call(structure.keep, scores, jnp.int32(4), live)
  np.testing.assert_array_equal(kept, [[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]])
  growth = jnp.asarray([[0.0, 1, 5], [0, 2, 5], [5, 3, 0], [5, 4, 0]])
  masks, budget = call(structure.fill, growth, jnp.int32(6), kept, live)
  np.testing.assert_array_equal(masks, [[1, 0, 0], [1, 0, 0], [0, 1, 1], [0, 1, 1]])
  assert int(budget) == 6


@pytest.mark.parametrize(
  ("growth_of_neuron_1", "closed", "budget"),
  # Neuron 1 kept nothing. With one of its dead weights among the layer's best three
  # it has one salient weight of the two that half of k = 3 asks for; with two it stays.
  [([0, 9, 0, 0, 0], True, 8), ([9, 9, 0, 0, 0], False, 9)],
)
def test_a_neuron_with_few_salient_weights_is_closed(
  growth_of_neuron_1, closed, budget
):
  structure = sj.constant_fan_in(ablation=0.5)
  before = jnp.asarray([[1, 1, 0], [1, 1, 0], [1, 1, 1], [0, 0, 1], [0, 0, 1]]) > 0
  kept = before.at[:, 1].set(False)
  growth = jnp.asarray(
    [[0, 0, 1], [0, 0, 2], [0, 0, 0], [5, 0, 0], [4, 0, 0]], jnp.float32
  )
  growth = growth.at[:, 1].set(jnp.asarray(growth_of_neuron_1, jnp.float32))
  masks, new = call(structure.fill, growth, jnp.int32(9), kept, before)
  assert int(new) == budget
  assert np.asarray(masks).any(0).tolist() == [True, not closed, True]
  assert len({int(n) for n in masks.sum(0) if n}) == 1
  np.testing.assert_array_equal(masks[:, [0, 2]] & kept[:, [0, 2]], kept[:, [0, 2]])


def test_no_more_neurons_are_closed_than_the_budget_allows():
  structure = sj.constant_fan_in(ablation=1.0)
  kept = jnp.zeros((3, 4), bool).at[0, 0].set(True)
  before = kept.at[:2].set(True)
  scores = jnp.broadcast_to(jnp.arange(4.0), (3, 4))
  # Of seven dead weights three are of neuron 3, three of 2, one of 1: the salient ones
  # are 1, 1, 3, 3. Two neurons have the two that are asked for, but have six inputs.
  masks, new = call(structure.fill, scores, jnp.int32(8), kept, before)
  assert int(new) == 6
  assert masks.sum(0).tolist() == [2, 0, 2, 2]


def test_budgets_are_fitted_to_units():
  fit = functools.partial(call, sj.block((2, 2)).fit, {"a": (4, 4), "b": (2, 8)})
  assert fit(jnp.array([9, 5])).tolist() == [12, 4]  # four blocks for 14 weights
  assert fit(jnp.array([9, 4])).tolist() == [8, 4]
  assert fit(jnp.array([1, 1])).tolist() == [4, 4]  # at least one block
  assert fit(jnp.array([16, 16])).tolist() == [16, 16]


def test_budgets_of_channels_are_the_nearest_whole_ones():
  shapes = {"a": (3, 8), "b": (2, 4)}
  fitted = sj.channel(-1).fit(shapes, jnp.array([7, 7]))
  assert fitted.tolist() == [6, 8]
  assert sj.channel(-1).fit(shapes, jnp.array([1, 0])).tolist() == [3, 2]


def test_sums_do_not_depend_on_their_order():
  x = np.random.default_rng(0).normal(size=4096).astype(np.float32) ** 5
  sums = jax.jit(lambda x: exact_sums(x, (0,), 0))
  orders = [np.random.default_rng(i).permutation(x) for i in range(4)]
  assert len({float(sums(jnp.asarray(o)[:, None])[0, 0]) for o in orders}) == 1


SHAPE = (2, 8, 6)
CUTS = {  # a mask of SHAPE, seen with the weights of one group along the last axis
  "n_m": lambda x: x.reshape(2, 2, 4, 6).swapaxes(-1, -2),
  "strided": lambda x: x.reshape(2, 4, 2, 6).transpose(0, 2, 3, 1),
  "block": lambda x: x.reshape(2, 4, 2, 2, 3).swapaxes(2, 3).reshape(2, 4, 2, 6),
  "channel": lambda x: x.reshape(16, 6).T,
  "fan_in": lambda x: x.reshape(16, 6).T,
}
STRUCTURES = {
  "n_m": sj.n_m(2, 4),
  "strided": sj.n_m(1, 4, groups="strided"),
  "block": sj.block((2, 3)),
  "channel": sj.channel(-1),
  "fan_in": sj.constant_fan_in(),
}


@functools.cache
def program(name):
  """One round of a method on stacked layers (SHAPE[0]) or one: compiled once."""
  structure = STRUCTURES[name]

  @jax.jit
  def round_(first, second, budget, count):
    ones = jnp.ones_like(first, bool)
    masks = structure.select(first, budget, ones)
    kept = structure.keep(first, count, masks)
    filled, budget = structure.fill(second, budget, kept, masks)
    return masks, kept, filled, budget

  return round_


@pytest.mark.parametrize("name", STRUCTURES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), lost=st.integers(0, 15), units=st.integers(1, 4))
def test_counts_are_exact(name, seed, lost, units):
  rng = np.random.default_rng(seed)
  # Few values, so that ties abound, and "never" among them.
  values = np.asarray([-INF, -1.0, 0.0, 1.0, 2.0], np.float32)
  first, second = (jnp.asarray(rng.choice(values, SHAPE)) for _ in range(2))
  density = STRUCTURES[name].density
  unit = {"block": 6, "channel": 16, "fan_in": 6}.get(name)
  budget = round(density * first.size) if density else unit * units
  count = max(budget - lost, 1)
  counts = jnp.int32(budget), jnp.int32(count)
  masks, kept, filled, after = map(np.asarray, program(name)(first, second, *counts))
  assert masks.sum() == filled.sum() == budget == after
  assert not (kept & ~masks).any()
  assert not (kept & ~filled).any()
  groups = [CUTS[name](x).sum(-1) for x in (masks, kept, filled)]
  if density:
    assert kept.sum() == count
    assert (groups[0] == groups[2]).all()
    assert (groups[0] == round(density * 4)).all()
    assert groups[1].max() - groups[1].min() <= 1
  elif name == "fan_in":
    assert kept.sum() == count
    assert (groups[0] == units).all()
    assert (groups[2] == units).all()
  else:
    size = 6 if name == "block" else 16
    assert kept.sum() == max(count // size, 1) * size
    for group in groups:
      assert set(np.unique(group)) <= {0, size}


def test_stacked_layers_have_budgets_of_their_own():
  scores = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6)), jnp.float32)
  where = jnp.ones_like(scores, bool)
  for name, budgets in (("block", (6, 18)), ("fan_in", (6, 18))):
    structure = STRUCTURES[name]
    both = call(structure.select, scores, jnp.asarray(budgets, jnp.int32), where)
    for row, budget in enumerate(budgets):
      one = select(structure, scores[row], budget)
      np.testing.assert_array_equal(both[row], one)


def transposable_patterns(n, m):
  rows = [np.isin(range(m), c) for c in itertools.combinations(range(m), n)]
  every = (np.stack(p) for p in itertools.product(rows, repeat=m))
  return np.stack([p for p in every if (p.sum(0) == n).all()])


@pytest.mark.parametrize(("n", "m", "number"), [(2, 4, 90), (1, 4, 24), (2, 3, 6)])
def test_transposable_takes_the_best_pattern_of_each_block(n, m, number):
  patterns = transposable_patterns(n, m)
  assert len(patterns) == number  # Hubara et al. 2021: 90 for 2:4
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(3 * m, 2 * m))
  structure = sj.transposable_n_m(n, m)
  mask = select(structure, jnp.asarray(scores, jnp.float32), scores.size // m * n)
  cut = lambda x: x.reshape(3, m, 2, m).swapaxes(1, 2)
  found = (cut(scores) * cut(mask)).sum((-2, -1))
  best = (cut(scores)[:, :, None] * patterns).sum((-2, -1)).max(-1)
  np.testing.assert_allclose(found, best, rtol=1e-6)
  assert (cut(mask).sum(-1) == n).all()
  assert (cut(mask).sum(-2) == n).all()


def test_transposable_completes_blocks_and_keeps_patterns_while_pruning():
  structure, rng = sj.transposable_n_m(2, 4), np.random.default_rng(0)
  scores = jnp.asarray(rng.normal(size=(8, 8)), jnp.float32)
  everything = jnp.ones((8, 8), bool)
  cut = lambda x: np.asarray(x).reshape(2, 4, 2, 4).swapaxes(1, 2)
  patterns = transposable_patterns(2, 4)
  # Pruning in steps: each block contains a pattern at every density.
  masks = everything
  for count in (50, 38, 32):
    live = jnp.where(masks, scores, -jnp.inf)
    after = select(structure, live, count)
    assert after.sum() == count
    assert not (after & ~np.asarray(masks)).any()
    inside = (cut(after)[:, :, None] & patterns).sum((-2, -1)).max(-1)
    assert (inside == 8).all()
    masks = jnp.asarray(after)
    scores = jnp.asarray(rng.normal(size=(8, 8)), jnp.float32)
  # Half of the weights are dropped; what is left of a block is completed to the pattern
  # of the highest new scores that contains it.
  kept = call(structure.keep, scores, jnp.int32(16), masks)
  fresh = rng.normal(size=(8, 8))
  filled, _ = call(
    structure.fill, jnp.asarray(fresh, jnp.float32), jnp.int32(32), kept, masks
  )
  assert not (np.asarray(kept) & ~np.asarray(filled)).any()
  contains = (cut(kept)[:, :, None] & ~patterns).sum((-2, -1)) == 0
  values = (cut(fresh)[:, :, None] * patterns).sum((-2, -1))
  best = np.where(contains, values, -np.inf).max(-1)
  np.testing.assert_allclose((cut(fresh) * cut(filled)).sum((-2, -1)), best, rtol=1e-5)


@pytest.mark.parametrize(
  ("structure", "shape", "message"),
  [
    (sj.n_m(2, 4), (6, 4), r"n_m\(2, 4.*multiple of 4 along axis -2.*\(6, 4\) at 'a'"),
    (sj.n_m(2, 4, axis=3), (4, 4), "names axis 3"),
    (sj.block((4, 4)), (4, 6), r"block\(\(4, 4\)\) needs.*\(4, 6\)"),
    (sj.transposable_n_m(2, 4), (4, 6), r"transposable_n_m\(2, 4\) needs.*\(4, 6\)"),
    (sj.transposable_n_m(2, 4), (4,), r"multiples of 4, got shape \(4,\)"),
    (sj.channel(2), (4, 4), r"channel\(2\) names axis 2"),
    (sj.constant_fan_in(), (4,), "two axes"),
  ],
)
def test_layers_that_do_not_fit_are_refused(structure, shape, message):
  [axes] = plain_axes({"a": jnp.ones(shape)}, [jnp.int32(0)])
  with pytest.raises(ValueError, match=message):
    structure.check("a", axes)


@pytest.mark.parametrize(
  ("make", "error", "message"),
  [
    (lambda: sj.n_m(4, 4), ValueError, "m must be above n = 4, got 4"),
    (lambda: sj.n_m(0, 4), ValueError, "n must be at least 1"),
    (lambda: sj.n_m(2.0, 4), TypeError, "n must be an integer"),
    (lambda: sj.n_m(2, 4, groups="far"), ValueError, "groups must be"),
    (lambda: sj.transposable_n_m(2, 8), ValueError, "m must be at most 4"),
    (lambda: sj.transposable_n_m(4, 4), ValueError, "m must be above n = 4"),
    (lambda: sj.block(4), TypeError, "shape must be 2 integers"),
    (lambda: sj.block((0, 4)), ValueError, "shape must be at least 1"),
    (lambda: sj.block((4, 4), score="l2"), ValueError, "score must be"),
    (lambda: sj.channel(1.0), TypeError, "axis must be an integer"),
    (lambda: sj.constant_fan_in(ablation=1.5), ValueError, "ablation must be"),
  ],
)
def test_bad_arguments_are_refused(make, error, message):
  with pytest.raises(error, match=message):
    make()


def test_equal_arguments_give_the_same_structure():
  assert sj.n_m(2, 4) is sj.n_m(2, 4, axis=-2)
  assert sj.n_m(2, 4) is not sj.n_m(2, 4, groups="strided")


def test_compressed_kernels_expand_to_what_they_were():
  rng = np.random.default_rng(0)
  kernel = jnp.asarray(rng.normal(size=(3, 8, 2)), jnp.bfloat16)
  mask = select(sj.n_m(2, 4), jnp.abs(kernel).astype(jnp.float32), kernel.size // 2)
  # Of a convolution: without the axis, rank 3 might be attention's and is refused.
  pack = functools.partial(sj.compress_n_m, n=2, m=4, axis=-2)
  values, indices = call(pack, kernel, jnp.asarray(mask))
  assert values.shape == indices.shape == (3, 4, 2)
  assert (values.dtype, indices.dtype) == (jnp.bfloat16, jnp.uint8)
  expanded = call(functools.partial(sj.expand_n_m, n=2, m=4, axis=-2), values, indices)
  np.testing.assert_array_equal(
    expanded, jnp.where(mask, kernel, jnp.zeros_like(kernel))
  )
  with pytest.raises(ValueError, match="exactly 1 of 4"):
    sj.compress_n_m(kernel, jnp.asarray(mask), 1, 4, axis=-2)


def test_qwix_takes_the_same_weights():
  """A masked kernel goes through Qwix's N:M rule unchanged: it can take over."""
  sparsity = pytest.importorskip("qwix.contrib.sparsity.sparsity_module").sparsity
  kernel = jnp.asarray(np.random.default_rng(0).normal(size=(16, 6)), jnp.float32)
  for n in (1, 2):
    mask = select(sj.n_m(n, 4), jnp.abs(kernel), kernel.size // 4 * n)
    masked = jnp.where(mask, kernel, jnp.zeros_like(kernel))
    theirs = sparsity.get_sparsity_mask(masked, n, 4, order="C")
    np.testing.assert_array_equal(theirs, mask)
