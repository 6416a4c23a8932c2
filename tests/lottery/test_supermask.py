"""Supermasks: tables worked by hand, weights that never change, files, bad input."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import sparsejax as sj
from sparsejax import models, supermasks


def kernel(*values):
  return {"kernel": jnp.array([values], jnp.float32), "bias": jnp.array([-0.0, 0.5])}


def with_scores(state, *scores):
  return state._replace(scores={"kernel": jnp.array([scores]), "bias": None})


def test_edge_popup_by_hand():
  """s' = s - sign(s) w g, and the two largest |s'| of four are live."""
  params = kernel(2, -1, 3, 1)
  tx = supermasks.edge_popup(optax.sgd(1.0), 0.5)
  state = with_scores(tx.init(params), 0.5, -0.4, 0.3, -0.2)
  updates, state = jax.jit(tx.update)(kernel(0.2, 1, -0.5, 0), state, params)
  # sign(s) w g = 0.4, 1, -1.5, 0.
  expected = [[0.1, -1.4, 1.8, -0.2]]
  np.testing.assert_allclose(state.scores["kernel"], expected, rtol=1e-6)
  mask = sj.masks(state)
  np.testing.assert_array_equal(mask["kernel"], [[False, True, True, False]])
  assert mask["bias"] is None
  seen = sj.effective(params, state)
  np.testing.assert_array_equal(seen["kernel"], [[0, -1, 3, 0]])
  after = optax.apply_updates(params, updates)
  assert supermasks.weights_hash(after) == supermasks.weights_hash(params)  # -0.0 too


def test_edge_popup_is_supermask_as_an_optimizer():
  """The same masks as when the scores are trained by hand through `sj.supermask`."""
  params = {"kernel": jax.random.normal(jax.random.key(0), (6, 5))}
  target = jax.random.normal(jax.random.key(1), (6, 5))
  loss = lambda seen: jnp.sum((seen["kernel"] - target) ** 2)
  inner = optax.sgd(0.1, momentum=0.9)
  tx = supermasks.edge_popup(inner, 0.3, seed=4)
  state = tx.init(params)
  scores = sj.init_scores(params, jax.random.key(4))
  inner_state = inner.init(scores)

  @jax.jit
  def both(state, scores, inner_state):
    grads = jax.grad(lambda p: loss(sj.effective(p, state)))(params)
    _, state = tx.update(grads, state, params)
    grads = jax.grad(lambda s: loss(sj.supermask(params, s, 0.3)))(scores)
    steps, inner_state = inner.update(grads, inner_state)
    return state, optax.apply_updates(scores, steps), inner_state

  for _ in range(5):
    state, scores, inner_state = both(state, scores, inner_state)
    masks = sj.supermask_masks(scores, 0.3)
    np.testing.assert_array_equal(sj.masks(state)["kernel"], masks["kernel"])
    np.testing.assert_allclose(state.scores["kernel"], scores["kernel"], rtol=1e-5)


def test_edge_popup_is_the_same_everywhere():
  """Exact counts in bfloat16, one program for two densities, vmap and sharding."""
  draw = lambda seed, *s: jax.random.normal(jax.random.key(seed), s, jnp.bfloat16)
  params = {"a": draw(0, 8, 10), "b": draw(1, 10, 8), "bias": draw(2, 8)}
  grads = {"a": draw(3, 8, 10), "b": draw(4, 10, 8), "bias": draw(5, 8)}
  inner = optax.sgd(0.5, momentum=0.5)
  tx = supermasks.edge_popup(inner, 0.5)
  step = jax.jit(lambda grads, state, params: tx.update(grads, state, params)[1])
  states = [supermasks.edge_popup(inner, kept).init(params) for kept in (0.5, 0.25)]
  after = [step(grads, state, params) for state in states]
  counts = [[int(m.sum()) for m in jax.tree.leaves(sj.masks(s))] for s in after]
  assert counts == [[40, 40], [20, 20]]
  assert after[0].scores["a"].dtype == jnp.bfloat16
  assert step._cache_size() == 1
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
  both = jax.jit(jax.vmap(step, (None, 0, None)))(grads, stacked, params)
  for i, one in enumerate(after):
    member = jax.tree.map(lambda x, i=i: x[i], sj.masks(both))
    chex.assert_trees_all_equal(member, sj.masks(one))
  mesh = Mesh(np.array(jax.devices()), ("d",))
  place = {"a": PartitionSpec("d"), "b": PartitionSpec(None, "d")}
  put = lambda tree: {
    k: jax.device_put(p, NamedSharding(mesh, place.get(k, PartitionSpec())))
    for k, p in tree.items()
  }
  sharded = put(params)
  spread = step(put(grads), jax.jit(tx.init)(sharded), sharded)
  assert spread.scores["a"].sharding.spec == PartitionSpec("d")
  jax.tree.map(
    np.testing.assert_array_equal,
    sj.masks(spread),
    sj.masks(step(grads, states[0], params)),
  )


def test_bernoulli_by_hand():
  """v' = v - sigmoid'(v) w g, and masks are drawn from v'."""
  params = kernel(4, -8, 2, 1)
  tx = supermasks.bernoulli_supermask(optax.sgd(1.0), 0.5)
  state = tx.init(params)
  np.testing.assert_array_equal(state.scores["kernel"], [[0, 0, 0, 0]])
  updates, state = jax.jit(tx.update)(kernel(100, 100, 0, 100), state, params)
  np.testing.assert_allclose(state.scores["kernel"], [[-100, 200, 0, -25]], rtol=1e-6)
  mask = np.asarray(sj.masks(state)["kernel"][0])
  assert (mask[0], mask[1], mask[3]) == (False, True, False)
  assert int(state.sparse.budgets["kernel"]) == mask.sum()
  assert supermasks.weights_hash(optax.apply_updates(params, updates)) == (
    supermasks.weights_hash(params)
  )


def test_bernoulli_draws_follow_the_probabilities():
  logits = {"kernel": jnp.broadcast_to(jnp.array([-1.0, 0.0, 2.0]), (4000, 3))}
  masks = supermasks.bernoulli_masks(logits, jax.random.key(0))
  rates = masks["kernel"].mean(0)
  np.testing.assert_allclose(rates, jax.nn.sigmoid(logits["kernel"][0]), atol=0.03)
  again = supermasks.bernoulli_masks(logits, jax.random.key(1))
  assert bool((masks["kernel"] != again["kernel"]).any())


def test_bernoulli_masks_are_drawn_at_every_step_and_nan_skips_a_draw():
  params = {"kernel": jnp.ones((8, 8))}
  tx = supermasks.bernoulli_supermask(optax.sgd(1.0))
  update = jax.jit(tx.update)
  state = tx.init(params)
  before = sj.masks(state)["kernel"]
  _, state = update(jax.tree.map(jnp.zeros_like, params), state, params)
  after = sj.masks(state)["kernel"]
  assert bool((before != after).any())
  _, state = update({"kernel": jnp.full((8, 8), jnp.nan)}, state, params)
  np.testing.assert_array_equal(sj.masks(state)["kernel"], after)
  assert int(sj.skipped_updates(state)) == 1


def test_rescaling_is_dynamic_and_reaches_the_gradient():
  params = kernel(1, -2, 3, 0.5)
  state = sj.straight_through(optax.sgd(1.0), 0.5).init(params)
  seen = supermasks.rescaled_effective(params, state)
  np.testing.assert_array_equal(seen["kernel"], [[0, -4, 6, 0]])
  np.testing.assert_array_equal(seen["bias"], params["bias"])
  total = lambda p: jnp.sum(supermasks.rescaled_effective(p, state)["kernel"])
  np.testing.assert_array_equal(jax.grad(total)(params)["kernel"], [[2, 2, 2, 2]])
  empty = sj.with_masks(state, {"kernel": jnp.zeros((1, 4), bool), "bias": None})
  assert not supermasks.rescaled_effective(params, empty)["kernel"].any()


def test_rescaling_is_that_of_each_stacked_layer():
  params = {"kernel": jnp.ones((2, 1, 4))}
  tx = sj.straight_through(optax.sgd(1.0), 0.5, stacked="kernel")
  masks = {"kernel": jnp.array([[[1, 0, 0, 0]], [[1, 1, 1, 1]]], bool)}
  state = sj.with_masks(tx.init(params), masks)
  seen = supermasks.rescaled_effective(params, state)
  np.testing.assert_array_equal(seen["kernel"], [[[4, 0, 0, 0]], [[1, 1, 1, 1]]])


@pytest.mark.parametrize("density", [1.0, 0.25])
def test_random_weights_have_the_scale_of_their_fan_in(density):
  shape = (3, 3, 16, 32)
  std = (2 / (9 * 16 * density)) ** 0.5
  constant, _ = models.signed_kaiming_constant(9 * 16, density)
  weights = np.asarray(constant(jax.random.key(0), shape))
  np.testing.assert_allclose(np.abs(weights), std, rtol=1e-6)
  assert abs((weights > 0).mean() - 0.5) < 0.03
  normal, _ = models.kaiming_normal(9 * 16, density)
  assert abs(np.std(normal(jax.random.key(0), shape)) / std - 1) < 0.05


class TestFile:
  init = staticmethod(
    lambda seed: {"kernel": jax.random.normal(jax.random.key(seed), (64, 100))}
  )

  def save(self, path, seed=3, state=None):
    masks = {"kernel": self.init(99)["kernel"] > 0}
    supermasks.save_supermask(path, masks, seed, self.init(seed), state)
    return masks

  def test_a_file_is_a_small_part_of_the_weights_and_gives_them_back(self, tmp_path):
    state = {"mean": jnp.arange(3.0)}
    masks = self.save(tmp_path / "a.npz", state=state)
    loaded = supermasks.load_supermask(tmp_path / "a.npz", self.init, state)
    expected = sj.apply_masks(self.init(3), masks)
    np.testing.assert_array_equal(loaded.params["kernel"], expected["kernel"])
    np.testing.assert_array_equal(loaded.masks["kernel"], masks["kernel"])
    np.testing.assert_array_equal(loaded.state["mean"], state["mean"])
    assert loaded.seed == 3
    # A thirty-second, and what names, shape, seed, hash and state take.
    assert (tmp_path / "a.npz").stat().st_size < 64 * 100 * 4 / 32 * 1.04 + 2500
    same = sj.load_masks(tmp_path / "a.npz", expected)
    np.testing.assert_array_equal(same["kernel"], masks["kernel"])

  def test_other_weights_are_refused(self, tmp_path):
    self.save(tmp_path / "a.npz")
    other = lambda seed: jax.tree.map(jnp.negative, self.init(seed))
    with pytest.raises(ValueError, match="init must draw from seed 3 the weights"):
      supermasks.load_supermask(tmp_path / "a.npz", other)

  def test_other_files_and_states_are_refused(self, tmp_path):
    masks = self.save(tmp_path / "a.npz", state={"mean": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"like_state must have the leaves .*'mean'"):
      supermasks.load_supermask(tmp_path / "a.npz", self.init, {"var": jnp.zeros(3)})
    sj.save_masks(tmp_path / "b.npz", masks)
    with pytest.raises(ValueError, match="path must be a file of save_supermask"):
      supermasks.load_supermask(tmp_path / "b.npz", self.init)
    with pytest.raises(TypeError, match=r"seed must be an integer, got 0\.5"):
      supermasks.save_supermask(tmp_path / "c.npz", masks, 0.5, self.init(0))  # pyright: ignore


@pytest.mark.parametrize(
  "make", [supermasks.edge_popup, supermasks.bernoulli_supermask]
)
@pytest.mark.parametrize("density", [0, 0.0, 1, 1.0, -0.1, 1.5])
def test_nothing_or_everything_kept_is_refused(make, density):
  with pytest.raises(ValueError, match=rf"density must lie inside \(0, 1\).*{density}"):
    make(optax.sgd(0.1), density)


def test_bad_input_is_named():
  with pytest.raises(TypeError, match=r"density must be a number, got '0\.5'"):
    supermasks.edge_popup(optax.sgd(0.1), "0.5")  # pyright: ignore
  with pytest.raises(ValueError, match="where must select at least one leaf"):
    supermasks.edge_popup(optax.sgd(0.1), 0.5, where="conv").init(kernel(1, 2))
  tx = supermasks.edge_popup(optax.sgd(0.1), 0.5)
  with pytest.raises(ValueError, match="params must be passed to update"):
    tx.update(kernel(1, 2), tx.init(kernel(1, 2)))
  with pytest.raises(ValueError, match=r"density must lie in \(0, 1\], got 0"):
    models.signed_kaiming_constant(3, 0)
  with pytest.raises(ValueError, match=r"initialization must be one of .*; got 'he'"):
    models.create("mlp", initialization="he")
  with pytest.raises(ValueError, match="initialization must be given with"):
    models.create("mlp", initialization_kwargs={"density": 0.5})
