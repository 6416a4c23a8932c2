"""SNFS, DSR, Deep-R, RigL's options and the exploration rate: tables by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sparsejax as sj
from sparsejax.core import plain_axes
from sparsejax.transforms._grow_by_paths import _path_scores

SGD = optax.sgd(1.0)


def start(tx, params, masks):
  """A state with given masks, for single layers called "w"."""
  return sj.with_masks(tx.init({"w": params}), {"w": masks})


def bits(state):
  return np.asarray(sj.masks(state)["w"]).astype(int).ravel().tolist()


def row(*values, dtype=jnp.float32):
  return jnp.array([values], dtype)


def stepped(tx, params, state, grads):
  updates, state = jax.jit(tx.update)({"w": grads}, state, {"w": params})
  return optax.apply_updates(params, updates["w"]), state


def test_snfs():
  tx = sj.snfs(SGD, 0.5, update_every=2, drop_fraction=0.5, momentum=0.5)
  params = row(4.0, 1.0, 0.0, 0.0)
  state = start(tx, params, row(1, 1, 0, 0, dtype=bool))
  params, state = stepped(tx, params, state, row(0.0, 0.0, 8.0, 3.0))
  assert params.tolist() == [[4.0, 1.0, 0.0, 0.0]]  # gradients are masked
  params, state = stepped(tx, params, state, row(0.0, 0.0, -4.0, 2.0))
  # Averages 4 - 4 and 1.5 + 2: the fourth is grown and takes its step of -2.
  assert bits(state) == [1, 0, 0, 1]
  assert params.tolist() == [[4.0, 0.0, 0.0, -2.0]]


def test_drop_below():
  transform = sj.drop_below(1.0, 0.25, tolerance=0.1)
  params = {
    "a": row(0.5, 2.0, -3.0, 1.0),
    "b": row(0.1, -0.2, 0.3, 0.0),
    "c": row(5.0, 6.0, 7.0, 8.0),
  }
  masks = jax.tree.map(lambda p: jnp.ones_like(p, bool), params)
  nothing = jax.tree.map(lambda _: None, params)
  moments = sj.Moments(nothing, nothing)
  inputs = sj.ScoreInputs(
    params, params, moments, masks, jax.random.key(0), jnp.int32(1)
  )
  budgets = dict.fromkeys("abc", jnp.int32(4))
  topology = sj.Topology(masks, budgets, jnp.asarray(True))
  update = jax.jit(transform.update)
  new, state = update(inputs, topology, transform.init(params))
  # 1 of a (a weight at the threshold stays), 3 of b, whose largest stays: 4 where the
  # aim is 3, so the threshold is halved.
  assert [np.asarray(m).astype(int).ravel().tolist() for m in new.masks.values()] == [
    [0, 1, 1, 1],
    [0, 0, 1, 0],
    [1, 1, 1, 1],
  ]
  assert float(state.threshold) == 0.5
  for h, after in ((0.15, 0.3), (0.25, 0.25), (0.6, 0.3)):
    # 2, 3 and 4 fall; the aim of 3 may be missed by .3.
    state = state._replace(threshold=jnp.float32(h))
    assert float(update(inputs, topology, state)[1].threshold) == pytest.approx(after)


def test_dsr_moves_budget_to_survivors_and_keeps_the_total():
  tx = sj.dsr(optax.sgd(0.0), 0.5, update_every=1, threshold=1.0)
  params = {"a": jnp.full((4, 4), 2.0), "b": jnp.full((4, 4), 0.1)}
  state = tx.init(params)
  _, state = jax.jit(tx.update)(params, state, params)
  # b keeps 1 of 8; its 7 are shared 8 : 1, .78 of one back to b.
  assert [int(b) for b in jax.tree.leaves(state.budgets)] == [14, 2]
  assert [int(m.sum()) for m in jax.tree.leaves(state.masks)] == [14, 2]
  assert float(state.transform_state[0].threshold) == 0.5


def test_deep_r_by_hand():
  tx = sj.deep_r(SGD, 0.5, l1=0.0)
  params = row(1.0, -1.0, 1.0, 0.0)
  state = start(tx, params, row(1, 1, 1, 0, dtype=bool))
  assert np.asarray(state.positive["w"]).tolist() == [[True, False, True, True]]
  # The first crosses zero, the second comes to stand on it and stays.
  grads = row(1.5, -1.0, 0.25, 9.0)
  params, state = stepped(tx, params, state, grads)
  woken = bits(state)
  assert sum(woken) == 3
  assert woken[1] == woken[2] == 1
  # Whichever woke, and it may be the one that died, starts from zero.
  assert params.tolist() == [[0.0, 0.0, 0.75, 0.0]]
  # It goes to its own side, or dies.
  at = next(i for i in (0, 3) if woken[i])
  positive = bool(state.positive["w"][0, at])
  push = jnp.zeros((1, 4)).at[0, at].set(-0.5 if positive else 0.5)
  moved, after = stepped(tx, params, state, push)
  assert bits(after) == woken
  assert float(moved[0, at]) == (0.5 if positive else -0.5)
  died, after = stepped(tx, params, state, -push)
  assert float(died[0, at]) == 0.0
  assert sum(bits(after)) == 3


def test_deep_r_pulls_to_zero_and_shakes():
  tx = sj.deep_r(SGD, 1.0, l1=0.25, update_every=None)
  params = row(1.0, -1.0)
  moved, _ = stepped(tx, params, tx.init({"w": params}), row(0.0, 0.0))
  assert moved.tolist() == [[0.75, -0.75]]
  tx = sj.deep_r(SGD, 0.5, l1=0.0, noise=0.1, update_every=None)
  params = jnp.ones((20, 20))
  state = tx.init({"w": params})
  moved, state = stepped(tx, params, state, jnp.zeros((20, 20)))
  live = np.asarray(sj.masks(state)["w"])
  assert 0.08 < float(np.asarray(moved)[live].std()) < 0.12
  assert np.all(np.asarray(moved)[~live] == 0)


@pytest.mark.parametrize(
  ("init", "value"), [("gradient", -12.0), ("initial", 2 * 7.0), ("random", None)]
)
def test_grown_weights_start_where_rigl_is_told(init, value):
  options = {"drop_fraction": 0.5, "grow_init": init, "grow_scale": 2}
  tx = sj.rigl(SGD, 0.5, update_every=1, **options)
  first = row(1.0, 2.0, 7.0, 9.0)
  state = start(tx, first, row(1, 1, 0, 0, dtype=bool))
  params = row(1.0, 2.0, 0.0, 0.0)
  new, state = stepped(tx, params, state, row(0.25, 0.25, 6.0, 1.0))
  assert bits(state) == [0, 1, 1, 0]
  assert float(new[0, 1]) == 1.75
  assert new[0, 0] == new[0, 3] == 0
  if value is None:
    assert float(new[0, 2]) not in (0.0, -6.0)
  else:
    assert float(new[0, 2]) == value
  assert int(sj.skipped_updates(state)) == 0


def test_rigl_sums_gradients_between_mask_updates():
  for accumulate, grown in ((True, [0, 1, 1, 0]), (False, [0, 1, 0, 1])):
    tx = sj.rigl(
      SGD, 0.5, update_every=2, drop_fraction=0.5, accumulate_gradients=accumulate
    )
    params = row(1.0, 2.0, 0.0, 0.0)
    state = start(tx, params, row(1, 1, 0, 0, dtype=bool))
    for grads in (row(0.0, 0.0, 5.0, 0.0), row(0.0, 0.0, 1.0, 2.0)):
      params, state = stepped(tx, params, state, grads)
    assert bits(state) == grown
  tx = sj.rigl(SGD, 0.5, update_every=1, drop_noise=100.0)
  params = jnp.arange(1.0, 101.0).reshape(10, 10)
  masks = params > 50
  _, state = stepped(tx, params, start(tx, params, masks), 1 / params)
  dropped = np.asarray(masks & ~sj.masks(state)["w"])
  assert dropped.sum() == 15
  assert params[dropped].max() > 65  # 15 of 50 go, and not the 15 smallest


def test_exploration_rate():
  tx = sj.track_exploration(sj.sparse_evolution(SGD, 0.25, drop_fraction=0.9))
  params = {"w": jnp.ones((4, 4)), "b": jnp.ones(4)}
  state = tx.init(params)
  update = jax.jit(tx.update)
  ever = sj.masks(state)["w"]
  for flag in (True, False, True):
    _, state = update(params, state, params, update_masks=flag)
    ever = ever | sj.masks(state)["w"]
    assert float(sj.exploration_rate((state,))) == float(ever.sum()) / 16
  assert float(sj.exploration_rate(state)) > 0.25
  with pytest.raises(ValueError, match="must come from an optimizer in"):
    sj.exploration_rate(state.inner_state)


@pytest.mark.parametrize(
  ("make", "error", "message"),
  [
    (lambda: sj.rigl(SGD, 0.5, grow_init="ones"), ValueError, "init must be one of"),
    (lambda: sj.rigl(SGD, 0.5, grow_init=1), TypeError, "init must be a name or"),
    (lambda: sj.dsr(SGD, 0.5, threshold=0), ValueError, "threshold must be above 0"),
    (lambda: sj.dsr(SGD, 0.5, tolerance=-1), ValueError, "tolerance must be at least"),
    (lambda: sj.deep_r(SGD, 0.5, l1=-1), ValueError, "l1 must be at least 0, got -1"),
    (lambda: sj.deep_r(SGD, 0.5, structure="2:4"), ValueError, "None for deep_r"),
    (lambda: sj.snfs(SGD, 0.5, momentum=2), ValueError, r"decay must lie in \(0, 1\]"),
    (
      lambda: sj.initialize_grown(SGD, "random").init({"w": row(1.0)}),
      TypeError,
      "tx must be made by sparsify",
    ),
  ],
)
def test_refused(make, error, message):
  with pytest.raises(error, match=message):
    make()


def test_mest_hard_bound_drops_by_weight_and_gradient():
  tx = sj.mest(
    optax.sgd(0.0),
    0.75,
    update_every=1,
    drop_fraction=0.3,
    gradient_weight=0.02,
    soft_bound=False,
  )
  params = row(4.0, 1.0, 2.0, 0.0)
  state = start(tx, params, row(1, 1, 1, 0, dtype=bool))
  # s = 4, 1 + 2, 2: the third is dropped, and one of the last two is grown.
  _, state = stepped(tx, params, state, row(0.0, -100.0, 0.0, 7.0))
  assert bits(state)[:2] == [1, 1]
  assert sum(bits(state)) == 3


def test_mest_soft_bound_grows_first_and_ends_at_the_budget():
  tx = sj.mest(SGD, 0.5, update_every=2, end_step=6, drop_fraction=0.5)
  params = row(4.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
  state = tx.init({"w": params})
  state = sj.with_masks(state, {"w": (params > 0).at[0, 2:4].set(True)})
  push = jnp.full((1, 8), -1.0)
  live = []
  for _ in range(7):
    before = bits(state)
    old = params
    params, state = stepped(tx, params, state, push)
    live.append(sum(bits(state)))
    if sum(before) == 6 and live[-1] == 4:
      # The last mask update keeps the four largest |w|, for all gradients are equal.
      order = np.argsort(-np.abs(np.asarray(old)[0]), kind="stable")
      assert sorted(order[:4]) == np.flatnonzero(bits(state)).tolist()
  # Two more than the budget of four after the first two mask updates.
  assert live == [4, 6, 6, 6, 6, 4, 4]
  assert int(state.budgets["w"]) == 4


def test_extend_raises_budgets_up_to_the_layer():
  params = {"a": jnp.ones((2, 4)), "b": jnp.ones((1, 4)), "c": jnp.ones((1, 4))}
  nothing = jax.tree.map(lambda _: None, params)
  masks = jax.tree.map(lambda p: jnp.ones_like(p, bool), params)
  inputs = sj.ScoreInputs(
    params, params, sj.Moments(nothing, nothing), masks, jax.random.key(0), jnp.int32(1)
  )
  budgets = {"a": jnp.int32(4), "b": jnp.int32(3), "c": jnp.int32(4)}
  topology = sj.Topology(masks, budgets, jnp.asarray(True))
  new, _ = sj.extend(0.5).update(inputs, topology, ())
  assert [int(b) for b in new.budgets.values()] == [6, 4, 4]
  assert new.masks is masks
  new, _ = sj.extend(lambda step: jnp.nan).update(inputs, topology, ())
  assert not new.finite


def paths_by_hand(links, predictor):
  """Follows every path of three links, in float64."""
  scores = np.zeros(links.shape)
  for u, v in np.ndindex(*links.shape):
    inputs, outputs = np.flatnonzero(links[:, v]), np.flatnonzero(links[u])
    for side, ends, others in ((links, inputs, outputs), (links.T, outputs, inputs)):
      for z in ends:
        internal = side[z, others].sum()
        external = max(side[z].sum() - internal - 1, 0)
        if internal:
          scores[u, v] += (internal if predictor == "ch2" else 1) / (1 + external)
  return scores


@pytest.mark.parametrize("predictor", ["ch2", "ch3"])
def test_growth_by_paths_follows_every_path(predictor):
  rng = np.random.default_rng(0)
  links = rng.random((7, 5)) < 0.35
  scores = np.where(links, -1, paths_by_hand(links.astype(int), predictor))
  params = {"w": jnp.zeros((7, 5))}
  nothing = {"w": None}
  inputs = sj.ScoreInputs(
    params, params, sj.Moments(nothing, nothing), {"w": jnp.asarray(links)},
    jax.random.key(0), jnp.int32(1),
  )  # fmt: skip
  update = jax.jit(sj.grow_by_paths(predictor, soft=False).update)
  for more in (1, 4, 9):
    budget = {"w": jnp.int32(int(links.sum()) + more)}
    topology = sj.Topology({"w": jnp.asarray(links)}, budget, jnp.asarray(True))
    grown = np.asarray(update(inputs, topology, ())[0].masks["w"]) & ~links
    assert grown.sum() == more
    # The sum of the best scores, which ties do not change.
    best = np.sort(scores.ravel())[-more:].sum()
    assert scores[grown].sum() == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("predictor", ["ch2", "ch3"])
def test_scores_by_paths_are_exact_in_any_order_of_summation(predictor):
  rng = np.random.default_rng(1)
  links = rng.random((96, 64)) < 0.2
  (layer,) = plain_axes({"w": links}, {"w": jnp.int32(0)})
  scores = jax.jit(lambda mask: _path_scores(mask, layer, predictor))
  found = scores(links)
  np.testing.assert_allclose(
    np.asarray(found) - 1e-5, paths_by_hand(links.astype(int), predictor), rtol=1e-5
  )
  # Other units first, so other sums; then sums over the units of several devices.
  a, b = rng.permutation(96), rng.permutation(64)
  np.testing.assert_array_equal(scores(links[a][:, b]), found[a][:, b])
  mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
  sharded = jax.device_put(links, NamedSharding(mesh, P("a", "b")))
  np.testing.assert_array_equal(scores(sharded), found)


def test_growth_by_paths_draws_in_proportion():
  # Of the masked weights (1, 1) closes a square, and (0, 2) and (1, 2) close nothing.
  links = jnp.array([[1, 1, 0], [1, 0, 0]], bool)
  params, nothing = {"w": jnp.zeros((2, 3))}, {"w": None}
  topology = sj.Topology({"w": links}, {"w": jnp.int32(4)}, jnp.asarray(True))

  @jax.jit
  def grown(key):
    inputs = sj.ScoreInputs(
      params, params, sj.Moments(nothing, nothing), {"w": links}, key, jnp.int32(1)
    )
    return sj.grow_by_paths().update(inputs, topology, ())[0].masks["w"]

  for seed in range(5):
    assert grown(jax.random.key(seed)).astype(int).tolist() == [[1, 1, 0], [1, 1, 0]]


def test_sampled_draws_in_proportion_to_a_power():
  params, nothing = {"w": row(1.0, 2.0, 3.0, 0.0)}, {"w": None}

  @jax.jit
  @jax.vmap
  def best(key):
    inputs = sj.ScoreInputs(
      params, params, sj.Moments(nothing, nothing), nothing, key, jnp.int32(2)
    )
    return jnp.argmax(sj.sampled(sj.magnitude, lambda step: step)(inputs)["w"])

  drawn = np.bincount(best(jax.random.split(jax.random.key(0), 4000)), minlength=4)
  # 1 : 4 : 9 of 14; three standard deviations are less than 100.
  np.testing.assert_allclose(drawn, np.array([1, 4, 9, 0]) * 4000 / 14, atol=100)
  assert drawn[3] == 0


def test_chts_keeps_its_budget_and_drops_more_of_the_small():
  tx = sj.chts(optax.sgd(0.0), 0.5, update_every=1, end_step=5, drop_fraction=0.4)
  params = jnp.asarray(np.random.default_rng(0).normal(size=(12, 10)), jnp.float32)
  state = tx.init({"w": params})
  before = np.asarray(sj.masks(state)["w"])
  _, state = stepped(tx, params, state, jnp.zeros_like(params))
  after = np.asarray(sj.masks(state)["w"])
  assert before.sum() == after.sum() == 60
  size = np.abs(np.asarray(params))
  assert size[before & ~after].mean() < size[before & after].mean()


def test_noise_may_be_traced():
  """The strength of the noise on the scores of RigL, and on the weights of Deep-R."""
  params, grads = {"w": row(4.0, 3.0, 2.0, 1.0)}, {"w": row(1.0, 2.0, 3.0, 4.0)}

  @jax.jit
  def live(strength):
    count = []
    for tx in (
      sj.rigl(SGD, 0.5, update_every=1, drop_noise=strength),
      sj.deep_r(SGD, 0.5, noise=strength),
    ):
      _, state = tx.update(grads, tx.init(params), params)
      count.append(sj.masks(state)["w"].sum())
    return jnp.stack(count)

  assert live(0.5).tolist() == [2, 2]


def test_chts_takes_moments_of_live_weights_only():
  tx = sj.chts(sj.condensed(optax.sgd(0.1, momentum=0.9)), 0.25, update_every=1)
  params, state = sj.init(tx, {"w": jnp.ones((8, 8))})
  _, state = jax.jit(tx.update)(params, state, params)
  assert int(sj.masks(state)["w"].sum()) == 16
