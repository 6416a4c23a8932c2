import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj
from sparsejax import models
from sparsejax.training import _at_initialization as at_initialization
from sparsejax.training import _errors as errors
from sparsejax.training import _functions as functions
from sparsejax.training import _optimizers as optimizers
from sparsejax.training import _program as program_lib
from sparsejax.training import _run as run_lib
from sparsejax.training import _step as step
from sparsejax.training import config as config_lib
from sparsejax.training import data
from sparsejax.training.data import _augment as augment
from sparsejax.transforms import UpdateSchedule

ZEROS = step.no_totals()


@pytest.fixture(scope="module")
def digits():
  return data.load("digits")


def test_cross_entropy_passes_over_padding():
  logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
  mean, totals = step.cross_entropy(logits, jnp.array([0, 0, -1]))
  expected = np.log1p(np.exp(-2.0)) + np.log1p(np.exp(1.0))
  np.testing.assert_allclose(totals.loss, expected, rtol=1e-6)
  np.testing.assert_allclose(mean, expected / 2, rtol=1e-6)
  assert (int(totals.correct), int(totals.examples)) == (1, 2)


def test_label_smoothing_is_cross_entropy_with_smoothed_targets():
  logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 3.0]])
  labels = jnp.array([0, 1])
  targets = optax.smooth_labels(jax.nn.one_hot(labels, 3), 0.1)
  mean, totals = step.cross_entropy(logits, labels, 0.1)
  expected = optax.softmax_cross_entropy(logits, targets)
  np.testing.assert_allclose(mean, expected.mean(), rtol=1e-6)
  np.testing.assert_allclose(totals.loss, expected.sum(), rtol=1e-6)


def test_means_of_nothing_are_nan():
  loss, accuracy = step.Totals(jnp.float32(0), jnp.int32(0), jnp.int32(0)).means()
  assert np.isnan(loss)
  assert np.isnan(accuracy)


def test_an_epoch_sees_each_image_at_most_once(prepared, tiny):
  program = prepared(tiny).program
  state = run_lib.place(program.init(np.array([0], np.int32)))
  first = np.asarray(program.order(state))
  second = np.asarray(program.order(state._replace(step=jnp.int32(40))))
  assert sorted(first) == list(range(1294))
  assert sorted(second) == list(range(1294))
  assert (first != second).mean() > 0.9
  again = np.asarray(program.order(state._replace(step=jnp.int32(39))))
  np.testing.assert_array_equal(first, again)


def test_run_is_a_loop_of_train_steps(prepared, pruned):
  """The compiled loop against the plain one that a reader would write."""
  run = prepared(pruned)
  c, dataset = run.config, run.dataset
  tx = optimizers.make_tx(c, run.total_steps, 0)
  state = run_lib.place(run.program.init(run.seeds))
  order = np.asarray(run.program.order(state))
  plain = jax.tree.map(lambda x: x, state)
  from sparsejax import models

  model = models.create("mlp", num_classes=10, features=(16,))
  plain_step = jax.jit(
    lambda s, x, y: step.train_step(
      s,
      x,
      y,
      run.schedule.due(s.step + 1),
      apply=functions.from_flax(model).apply,
      tx=tx,
    )
  )
  loss = 0.0
  for i in range(25):
    batch = data.take(dataset.train, order[32 * i : 32 * i + 32])
    images = (batch.images.astype(np.float32) - dataset.mean) / dataset.std
    plain, totals = plain_step(plain, images, batch.labels)
    loss += float(totals.loss)
  fast, totals = run.program.run(state, dataset.train, order, np.int32(25), ZEROS)
  assert int(fast.step) == int(plain.step) == 25
  assert int(totals.examples) == 25 * 32
  np.testing.assert_allclose(totals.loss, loss, rtol=1e-4)
  for a, b in zip(
    jax.tree.leaves(fast.params), jax.tree.leaves(plain.params), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_parts_of_any_length_share_one_compilation_and_compose(prepared, tiny):
  run = prepared(tiny)
  program, train = run.program, run_lib.place(run.dataset.train)
  whole = run_lib.place(program.init(run.seeds))
  order = program.order(whole)
  whole, expected = program.run(whole, train, order, np.int32(40), ZEROS)
  before = program.run._cache_size()
  parts = run_lib.place(program.init(run.seeds))
  totals = ZEROS
  for stop in (1, 13, 40):
    parts, totals = program.run(parts, train, order, np.int32(stop), totals)
    totals = jax.device_get(totals)
  assert program.run._cache_size() == before
  np.testing.assert_array_equal(totals, expected)
  for a, b in zip(
    jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_evaluate_counts_every_image_once(prepared, tiny):
  run = prepared(tiny)
  state = run_lib.place(run.program.init(run.seeds))
  test = run.dataset.test  # 359 images: no multiple of 100
  padded = data.pad(test, 100)
  whole = run.program.evaluate(state, test)
  parts = run.program.evaluate(state, padded)
  assert int(whole.examples) == int(parts.examples) == 359
  assert int(whole.correct) == int(parts.correct)
  np.testing.assert_allclose(whole.loss, parts.loss, rtol=1e-5)


def test_initial_weights_are_masked(prepared, tiny):
  run = prepared(tiny)
  state = run_lib.place(run.program.init(run.seeds))
  masks = sj.masks(state.opt_state)
  seen = jax.device_get(run_lib.observe(state))
  for name, mask in run_lib.named(masks).items():
    weights = np.asarray(run_lib.named(state.params)[name])
    assert (weights[~np.asarray(mask)] == 0).all()
    assert seen.live[name] == np.count_nonzero(mask) == np.count_nonzero(weights)
  np.testing.assert_allclose(seen.density, 0.3, atol=1e-3)


def test_turnover_by_hand():
  def state(*rows):
    masks = {"a": jnp.array(rows[0]) > 0, "b": jnp.array(rows[1]) > 0}
    params = jax.tree.map(lambda m: m.astype(jnp.float32), masks)
    opt_state = sj.with_masks(sj.dense(optax.sgd(0.1)).init(params), masks)
    return step.TrainState(
      jnp.zeros((), jnp.int32), jax.random.key(0), params, {}, opt_state
    )

  first = run_lib.turnover(state([[1, 1, 0]], [[0, 1]]))
  assert (int(first.dropped), int(first.grown)) == (0, 0)
  then = run_lib.turnover(state([[0, 1, 1]], [[1, 1]]), first.masks)
  assert (int(then.dropped), int(then.grown)) == (1, 2)


def test_exploration_is_tracked_where_masks_move(tiny):
  def explored(**fields):
    config = config_lib.complete({**tiny, "update_every": 1, **fields})
    tx = optimizers.make_tx(config, 100, 0)
    state = jax.vmap(tx.init)({"kernel": jnp.ones((2, 8, 8))})
    keys = jax.random.split(jax.random.key(0), 2)
    start = step.TrainState(jnp.zeros((), jnp.int32), keys, None, {}, state)
    return run_lib.observe(start).explored

  np.testing.assert_allclose(explored(track_exploration=True), [19 / 64] * 2)
  assert explored() is None
  assert explored(track_exploration=True, method="snip") is None


@pytest.mark.parametrize("method", ["phew", "ntk_sap", "prospr"])
def test_masks_are_found_from_the_model(method):
  module = models.create("mlp", num_classes=3, features=(8, 8))
  images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4, 1)), jnp.float32)
  params = module.init(jax.random.key(0), images)["params"]
  fields = {"seed": 1, "distribution": None}
  find = at_initialization.mask_finder(method, module, 0.1, fields, {})
  masks = find(params, {}, [(images, jnp.arange(3))])
  sizes = [m.size for m in jax.tree.leaves(masks)]
  assert sum(sizes) == 4 * 4 * 8 + 8 * 8 + 8 * 3
  assert sum(int(m.sum()) for m in jax.tree.leaves(masks)) == round(0.1 * sum(sizes))


class Experts(nn.Module):
  """Two experts of 16 inputs; the outputs of the first one are ten times larger."""

  @nn.compact
  def __call__(self, x, train=False):
    w = self.param("experts", nn.initializers.normal(1.0), (2, 16, 3))
    x = x.reshape(len(x), -1)
    return 10 * x @ w[0] + x @ w[1]


def test_masks_are_found_per_layer_of_a_stack():
  module, images = Experts(), jnp.ones((3, 4, 4, 1))
  params = module.init(jax.random.key(0), images)["params"]
  fields = {"distribution": sj.uniform}
  find = at_initialization.mask_finder("snip", module, 0.25, fields, {"stacked": "e"})
  masks = find(params, {}, [(images, jnp.arange(3))])
  assert masks["experts"].sum((1, 2)).tolist() == [12, 12]
  with pytest.raises(errors.ConfigError, match=r"method_kwargs must .* got stacked"):
    at_initialization.mask_finder("phew", module, 0.25, fields, {"stacked": "e"})
  # Each layer is rescaled by its own density: sqrt(48 / 12) = 2, sqrt(48 / 3) = 4.
  masks["experts"] = masks["experts"].at[1].set(False).at[1, 0].set(True)
  tx = sj.static_sparse(optax.sgd(0.1), 0.25, stacked="e")
  key = jax.random.key(0)
  start = step.TrainState(jnp.int32(0), key, params, {}, tx.init(params))
  state = at_initialization.place_masks(lambda *_: masks, start, [[]], True, "e")
  factors = jnp.where(masks["experts"], jnp.array([2.0, 4.0])[:, None, None], 0)
  np.testing.assert_allclose(state.params["experts"], params["experts"] * factors)
  assert sj.masks(state.opt_state)["experts"].sum((1, 2)).tolist() == [12, 3]


def test_seeds_side_by_side_are_the_seeds_alone(prepared, pruned, two_seeds):
  several = prepared(two_seeds)
  state = run_lib.place(several.program.init(several.seeds))
  order = several.program.order(state)
  assert order.shape == (2, 1294)
  state, totals = several.program.run(
    state,
    run_lib.place(several.dataset.train),
    order,
    np.int32(30),
    step.no_totals((2,)),
  )
  assert totals.loss.shape == (2,)
  assert state.step.shape == ()
  seen = jax.device_get(run_lib.observe(state))
  assert seen.density.shape == (2,)
  one = prepared(pruned)
  for i, seed in enumerate([3, 4]):
    alone = run_lib.place(one.program.init(np.array([seed], np.int32)))
    own = one.program.order(alone)
    np.testing.assert_array_equal(own, order[i])
    alone, _ = one.program.run(
      alone, run_lib.place(one.dataset.train), own, np.int32(30), ZEROS
    )
    for a, b in zip(
      jax.tree.leaves(sj.masks(alone.opt_state)),
      jax.tree.leaves(sj.masks(state.opt_state)),
      strict=True,
    ):
      assert (np.asarray(a) == np.asarray(b[i])).mean() > 0.98
    np.testing.assert_allclose(
      alone.params["dense1"]["bias"], state.params["dense1"]["bias"][i], atol=0.02
    )


def test_a_mask_update_stays_a_branch_beside_other_seeds(prepared, two_seeds):
  """With a batched flag `cond` would become a `select` that ranks at every step."""
  several = prepared(two_seeds)
  state = run_lib.place(several.program.init(several.seeds))
  order = several.program.order(state)
  jaxpr = jax.make_jaxpr(several.program.run)(
    state,
    run_lib.place(several.dataset.train),
    order,
    np.int32(30),
    step.no_totals((2,)),
  )
  assert "cond[" in str(jaxpr)

  # The branch of the mask update is the one that holds loops of its own.
  def branches(jaxpr, found):
    for eqn in jaxpr.eqns:
      if eqn.primitive.name == "cond":
        found.append(any("while" in str(b) for b in eqn.params["branches"]))
      for value in eqn.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
          inner = getattr(inner, "jaxpr", inner)
          if hasattr(inner, "eqns"):
            branches(inner, found)
    return found

  assert any(branches(jaxpr.jaxpr, []))


def test_augmentation_follows_from_seed_and_step(digits):
  """Any part of a run can be done again: no key is carried along."""
  seen = []

  def spy(key, images):
    jax.debug.callback(lambda k: seen.append(k.tolist()), jax.random.key_data(key))
    return augment.get("shift")(key, images)

  class Linear:
    def init(self, key, x):
      del key
      return {"params": {"kernel": jnp.zeros((x[0].size, 10))}}

    def apply(self, variables, x):
      return x.reshape(x.shape[0], -1) @ variables["params"]["kernel"]

  program = program_lib.make_program(
    Linear(),
    lambda seed: optax.with_extra_args_support(optax.sgd(0.1)),
    dataset=digits,
    batch_size=32,
    schedule=UpdateSchedule(0, None, every=None),
    augment=spy,
  )
  for stops in ([4], [2, 4]):
    state = run_lib.place(program.init(np.array([7], np.int32)))
    order = program.order(state)
    for stop in stops:
      state, _ = program.run(state, digits.train, order, np.int32(stop), ZEROS)
  jax.effects_barrier()
  assert len(seen) == 8
  assert seen[:4] == seen[4:]
  assert len({tuple(k) for k in seen}) == 4


def test_a_step_with_nan_gradients_changes_no_weight(prepared, tiny):
  run = prepared(tiny)
  program = run.program
  state = run_lib.place(program.init(run.seeds))
  params = jax.tree.map(np.asarray, state.params)
  broken = {**params, "dense1": {**params["dense1"]}}
  broken["dense1"]["bias"] = np.full_like(params["dense1"]["bias"], np.nan)
  order = program.order(state)
  state, _ = program.run(
    state._replace(params=run_lib.place(broken)),
    run_lib.place(run.dataset.train),
    order,
    np.int32(11),
    ZEROS,
  )
  seen = jax.device_get(run_lib.observe(state))
  assert seen.skipped_steps == seen.stuck_steps == 11
  assert config_lib.complete(tiny).update_every == 10
  assert seen.skipped_mask_updates in (0, 1)
  np.testing.assert_array_equal(
    state.params["dense2"]["bias"], params["dense2"]["bias"]
  )


def test_skipped_steps_of_a_method_with_two_optimizers():
  """The gates of continuous sparsification have an optimizer of their own."""
  inner = optax.apply_if_finite(optax.sgd(0.1), 3)
  tx = sj.continuous_sparsification(inner, 0.5, end_step=9)
  params = {"kernel": jnp.ones((2, 2))}
  opt_state, update = tx.init(params), jax.jit(tx.update)
  for value in (jnp.nan, 1.0, jnp.nan):
    grads = {"kernel": jnp.full((2, 2), value)}
    _, opt_state = update(grads, opt_state, params)
  state = step.TrainState(jnp.int32(3), jax.random.key(0), params, {}, opt_state)
  seen = jax.device_get(run_lib.observe(state))
  assert (seen.skipped_steps, seen.stuck_steps) == (2, 1)
