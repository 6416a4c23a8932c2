"""Each mask transform against tables worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj


def inputs(params, masks, grads=None, momentum=None, step=1, seed=0):
  nothing = jax.tree.map(lambda _: None, params)
  return sj.ScoreInputs(
    params=params,
    grads=params if grads is None else grads,
    moments=sj.Moments(params if momentum is None else momentum, nothing),
    masks=masks,
    key=jax.random.key(seed),
    step=jnp.int32(step),
  )


def topology(masks, budgets):
  return sj.Topology(masks, budgets, jnp.asarray(True))


def rows(*lists, dtype=None):
  return {
    name: jnp.array([row], dtype) for name, row in zip("abc", lists, strict=False)
  }


def run(transform, args, top):
  new, _ = jax.jit(transform.update)(args, top, transform.init(args.params))
  assert bool(new.finite)
  return new


def bits(masks):
  return {k: np.asarray(m).astype(int).ravel().tolist() for k, m in masks.items()}


def counts(**kwargs):
  return {k: jnp.int32(v) for k, v in kwargs.items()}


def test_drop():
  params = rows([0.5, -3.0, 2.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0, 9.0])
  masks = rows([1, 1, 1, 0, 1], [1, 1, 1, 1, 0], dtype=bool)
  top = topology(masks, counts(a=4, b=4))
  new = run(sj.drop(sj.magnitude, 0.5), inputs(params, masks), top)
  # a keeps its 2 largest; of b's equals the first 2 stay, and the dead 9 stays dead.
  assert bits(new.masks) == {"a": [0, 1, 1, 0, 0], "b": [1, 1, 0, 0, 0]}
  assert {k: int(v) for k, v in new.budgets.items()} == {"a": 4, "b": 4}


@pytest.mark.parametrize(
  ("budget", "fraction", "kept"),
  [
    (10, 0.3, 7),
    (10, 0.31, 6),
    (10, 0.0, 10),
    (10, 0.999, 1),
    (1, 0.5, 1),
    (3, 0.1, 2),
  ],
)
def test_drop_counts(budget, fraction, kept):
  """budget - ceil(fraction * budget), and at least one."""
  params = rows(list(range(1, budget + 1)))
  masks = jax.tree.map(lambda p: p > 0, params)
  params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
  new = run(
    sj.drop(sj.magnitude, fraction),
    inputs(params, masks),
    topology(masks, counts(a=budget)),
  )
  assert int(new.masks["a"].sum()) == kept


def test_drop_fraction_from_schedule_and_rule():
  params = rows([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0])
  masks = jax.tree.map(lambda p: p > 0, params)
  args, top = inputs(params, masks, step=3), topology(masks, counts(a=4, b=4))
  by_step = run(
    sj.drop(sj.magnitude, lambda step: 0.25 * step.astype(jnp.float32)), args, top
  )
  assert [int(m.sum()) for m in by_step.masks.values()] == [1, 1]
  per_layer = run(
    sj.drop(sj.magnitude, lambda inputs, top: jnp.array([0.0, 0.5])), args, top
  )
  assert [int(m.sum()) for m in per_layer.masks.values()] == [4, 2]


@pytest.mark.parametrize("value", [-1.0, 7.0, 1.0])
def test_schedules_out_of_range_are_clipped(value):
  params = rows([1.0, 2.0, 3.0, 4.0])
  masks = jax.tree.map(lambda p: p > 0, params)
  new = run(
    sj.drop(sj.magnitude, lambda step: jnp.float32(value)),
    inputs(params, masks),
    topology(masks, counts(a=4)),
  )
  assert int(new.masks["a"].sum()) == (4 if value < 0 else 1)


def test_grow():
  masks = rows([1, 0, 0, 0, 0], [0, 0, 0, 1, 1], dtype=bool)
  grads = rows([99.0, 1.0, -5.0, 5.0, 0.0], [0.0, 0.0, 0.0, 9.0, 9.0])
  new = run(
    sj.grow(sj.gradient),
    inputs(grads, masks, grads=grads),
    topology(masks, counts(a=3, b=4)),
  )
  # a wakes -5 and 5; b has only zeros to choose from, and still fills its budget.
  assert bits(new.masks) == {"a": [1, 0, 1, 1, 0], "b": [1, 1, 0, 1, 1]}


def test_never_scores_are_taken_last():
  masks = rows([0, 0, 0, 0], dtype=bool)
  never = rows([-jnp.inf, 1.0, -jnp.inf, 0.0])
  transform = sj.grow(lambda inputs: inputs.grads)
  for budget, expected in ((2, [0, 1, 0, 1]), (3, [1, 1, 0, 1])):
    new = run(
      transform, inputs(never, masks, grads=never), topology(masks, counts(a=budget))
    )
    assert bits(new.masks) == {"a": expected}


def test_redistribute():
  before = rows([1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], dtype=bool)
  after = rows([1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], dtype=bool)
  scores = rows(
    [1.0, 1.0, 1.0, 1.0, 50.0, 50.0], [4.0, 4.0, 50.0, 0, 0, 0], [3.0, 0, 0, 0, 0, 0]
  )
  top = topology(after, counts(a=4, b=2, c=1))
  new = run(sj.redistribute(sj.momentum), inputs(scores, before, momentum=scores), top)
  # 3 free weights in proportion 1 : 4 : 3 are .375, 1.5, 1.125: floors 0, 1, 1, and
  # the largest remainder is b's.
  assert {k: int(v) for k, v in new.budgets.items()} == {"a": 2, "b": 3, "c": 2}
  assert bits(new.masks) == bits(after)


def test_redistribute_spills_equally():
  masks = rows([1, 1, 1, 0], [1, 0, 0, 0, 0, 0, 0, 0], [1] + [0] * 9, dtype=bool)
  scores = rows([8.0] * 4, [1.0] * 8, [1.0] * 10)
  top = topology(masks, counts(a=4, b=6, c=5))
  new = run(sj.redistribute(sj.momentum), inputs(scores, masks, momentum=scores), top)
  # Of 10 free weights a gets 8 and has room for 1: b and c get 1 each, and half of 7,
  # the odd one to b.
  assert {k: int(v) for k, v in new.budgets.items()} == {"a": 4, "b": 6, "c": 5}


def test_redistribute_without_scores_gives_back():
  masks = rows([1, 0, 0, 0], [1, 0, 0, 0], dtype=bool)
  zero = rows([0.0] * 4, [0.0] * 4)
  top = topology(masks, counts(a=2, b=4))
  new = run(sj.redistribute(sj.momentum), inputs(zero, masks, momentum=zero), top)
  assert {k: int(v) for k, v in new.budgets.items()} == {"a": 2, "b": 4}


def test_sparse_momentum_by_hand():
  params = rows([0.1, -0.2, 0.3, 0.0], [0.5, 0.0, 0.0, 0.0])
  masks = rows([1, 1, 1, 0], [1, 0, 0, 0], dtype=bool)
  momentum = rows([1.0, -1.0, 1.0, 9.0], [-4.0, 2.0, 1.0, -5.0])
  transform = sj.chain(
    sj.drop(sj.magnitude, sj.near_dense(0.5)),
    sj.redistribute(sj.momentum),
    sj.grow(sj.momentum),
  )
  new = run(
    transform,
    inputs(params, masks, momentum=momentum),
    topology(masks, counts(a=3, b=1)),
  )
  # a drops 2 of 3; b keeps its only one. 2 free in proportion 1 : 4 are .4 and 1.6:
  # floors 0 and 1, the odd one to b, which wakes its largest momenta.
  assert {k: int(v) for k, v in new.budgets.items()} == {"a": 1, "b": 3}
  assert bits(new.masks) == {"a": [0, 0, 1, 0], "b": [1, 1, 0, 1]}


def test_near_dense_layers_drop_what_is_missing():
  # a: 1 of 10 dead, share above 1/2: drops a tenth. b: as dense, but its share is
  # below: drops half.
  masks = {"a": jnp.arange(10)[None] < 9, "b": jnp.arange(10)[None] < 9}
  ones = jax.tree.map(lambda m: jnp.ones(m.shape), masks)
  momentum = {"a": ones["a"] * 3, "b": ones["b"]}
  args = inputs(ones, masks, momentum=momentum)
  fractions = sj.near_dense(0.5)(args, topology(masks, counts(a=9, b=9)))
  np.testing.assert_allclose(fractions, [0.1, 0.5], rtol=1e-6)


def test_near_dense_layer_without_momentum_does_not_divide_by_zero():
  """The reference raises ZeroDivisionError here."""
  masks = {"a": jnp.ones((2, 5), bool), "b": jnp.ones((2, 5), bool)}
  zero = jax.tree.map(lambda m: jnp.zeros(m.shape), masks)
  args = inputs(zero, masks, momentum=zero)
  fractions = sj.near_dense(0.5)(args, topology(masks, counts(a=10, b=10)))
  assert fractions.tolist() == [0.5, 0.5]


def test_layer_without_live_weights():
  """The reference takes the mean of nothing: NaN, and fails."""
  masks = rows([0, 0, 0, 0], [1, 1, 0, 0], dtype=bool)
  values = rows([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0])
  transform = sj.chain(
    sj.drop(sj.magnitude, sj.near_dense(0.5)),
    sj.redistribute(sj.momentum),
    sj.grow(sj.momentum),
  )
  new = run(transform, inputs(values, masks), topology(masks, counts(a=0, b=2)))
  assert bits(new.masks) == {"a": [0, 0, 0, 0], "b": [0, 1, 0, 1]}


def test_prune_to():
  params = rows([5.0, 1.0, 2.0, 4.0], [3.0, 7.0, 6.0, 8.0])
  masks = rows([1, 1, 1, 1], [1, 1, 1, 1], dtype=bool)
  args, top = inputs(params, masks), topology(masks, counts(a=4, b=4))
  by_layer = run(sj.prune_to(sj.magnitude, 0.5, sj.uniform), args, top)
  assert bits(by_layer.masks) == {"a": [1, 0, 0, 1], "b": [0, 1, 0, 1]}
  whole = run(sj.prune_to(sj.magnitude, 0.5), args, top)
  assert bits(whole.masks) == {"a": [1, 0, 0, 0], "b": [0, 1, 1, 1]}
  assert {k: int(v) for k, v in whole.budgets.items()} == {"a": 1, "b": 3}


def test_prune_to_prefers_live_weights():
  params = rows([9.0, 0.1, 0.2, 0.3])
  masks = rows([0, 1, 1, 1], dtype=bool)
  new = run(
    sj.prune_to(sj.magnitude, 0.5, sj.uniform),
    inputs(params, masks),
    topology(masks, counts(a=3)),
  )
  assert bits(new.masks) == {"a": [0, 0, 1, 1]}


def test_prune_to_prefers_live_weights_of_the_lowest_score():
  masks = rows([0, 1, 1, 1], dtype=bool)
  lowest = lambda inputs: rows([9.0, -jnp.inf, -jnp.inf, 0.3])
  new = run(
    sj.prune_to(lowest, 0.75, sj.uniform),
    inputs(rows([9.0, 0.1, 0.2, 0.3]), masks),
    topology(masks, counts(a=3)),
  )
  assert bits(new.masks) == {"a": [0, 1, 1, 1]}


@pytest.mark.parametrize(
  ("method", "distribution"),
  [("gradual_magnitude", sj.uniform), ("spartan", sj.uniform), ("spartan", None)],
)
def test_schedules_end_at_the_density_as_given(method, distribution):
  """In float32 .05 is a little larger, and .05 of 50 would be rounded to 3."""
  params = {"kernel": jnp.arange(1.0, 51.0).reshape(5, 10)}
  settings = {"update_every": 2, "end_step": 6, "distribution": distribution}
  if method == "spartan":
    settings["warmup_steps"] = 4
  tx = getattr(sj, method)(optax.sgd(0.0), 0.05, **settings)
  state, update = tx.init(params), jax.jit(tx.update)
  for _ in range(6):
    _, state = update(params, state, params)
  assert int(sj.masks(state)["kernel"].sum()) == round(0.05 * 50) == 2


def test_set_drops_half_and_not_more():
  """The reference's SET leaves half of what it should, all of one sign."""
  key = jax.random.key(0)
  params = {"a": jax.random.normal(key, (40, 50))}
  masks = {"a": jax.random.uniform(jax.random.key(1), (40, 50)) < 0.5}
  live = int(masks["a"].sum())
  new = run(
    sj.drop(sj.magnitude, 0.5), inputs(params, masks), topology(masks, counts(a=live))
  )
  kept = params["a"][new.masks["a"]]
  assert kept.size == live - -(-live // 2)
  assert 0.3 < float((kept > 0).mean()) < 0.7


def test_growth_ignores_live_weights():
  """The reference wastes slots where dead momenta are zero: they tie with live ones."""
  masks = {"a": jnp.arange(100)[None] < 10}
  momentum = {"a": jnp.where(masks["a"], 5.0, 0.0)}
  new = run(
    sj.grow(sj.momentum),
    inputs(momentum, masks, momentum=momentum),
    topology(masks, counts(a=60)),
  )
  assert int(new.masks["a"].sum()) == 60


def test_cosine_and_linear_schedules_stay_down_past_their_end():
  """The reference's cosine rises again and its linear one goes negative."""
  params = rows([1.0, 2.0, 3.0, 4.0])
  masks = jax.tree.map(lambda p: p > 0, params)
  for schedule in (
    lambda s: optax.cosine_decay_schedule(0.5, 10)(jnp.asarray(s, jnp.float32)),
    lambda s: 0.5 - 0.05 * s.astype(jnp.float32),
  ):
    for step in (10, 15, 20, 1000):
      args = inputs(params, masks, step=step)
      new = run(sj.drop(sj.magnitude, schedule), args, topology(masks, counts(a=4)))
      assert int(new.masks["a"].sum()) == 4


def test_custom_score_and_transform():
  def alternate(inputs):
    return jax.tree.map(
      lambda p: jnp.where(jnp.arange(p.size).reshape(p.shape) % 2 == 0, 1.0, 0.0),
      inputs.params,
    )

  def shrink(inputs, topology, state):
    return topology._replace(
      budgets=jax.tree.map(lambda b: b - 1, topology.budgets)
    ), state

  params = rows([1.0] * 6)
  masks = jax.tree.map(lambda p: p > 0, params)
  transform = sj.chain(
    sj.drop(alternate, 0.5),
    sj.MaskTransform(lambda params: (), shrink),
    sj.grow(sj.random),
  )
  new = run(transform, inputs(params, masks), topology(masks, counts(a=6)))
  assert int(new.masks["a"].sum()) == 5
  assert bits(new.masks)["a"][::2] == [1, 1, 1]


@pytest.mark.parametrize("bad", [-0.1, 1.0, 2])
def test_fraction_out_of_range(bad):
  with pytest.raises(ValueError, match=r"fraction must lie in \[0, 1\), got"):
    sj.drop(sj.magnitude, bad)


def test_wrong_types():
  with pytest.raises(TypeError, match="fraction must be a float in"):
    sj.drop(sj.magnitude, "half")
  with pytest.raises(TypeError, match="transforms must be mask transforms"):
    sj.chain(sj.drop(sj.magnitude, 0.5), optax.sgd(0.1))
  with pytest.raises(ValueError, match=r"density must lie in \(0, 1\], got 2"):
    sj.prune_to(sj.magnitude, 2)
