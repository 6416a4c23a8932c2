"""`check_sparse`, and what `init` refuses: sparse optimizers in the wrong place."""

from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.experimental import checkify

import sparsejax as sj
from sparsejax import supermasks
from sparsejax.transforms._moments import fill_dead_second_moments

contrib = optax.contrib
SGD = optax.sgd(0.1)


@pytest.fixture(autouse=True)
def standard_promotion():
  """optax's Adam mixes integer counts with floats, which strict promotion refuses."""
  with jax.numpy_dtype_promotion("standard"):
    yield


def normal(seed, shape=(8, 6)):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def parameters():
  return {"body": {"kernel": normal(0), "bias": jnp.ones(6)}, "head": normal(1, (6, 4))}


def sparse(inner=SGD, **kwargs):
  return sj.static_sparse(inner, 0.25, **kwargs)


def train(tx, params, steps=3):
  state = tx.init(params)
  step = jax.jit(tx.update)
  for i in range(steps):
    grads = jax.tree.map(lambda p, i=i: normal(i, p.shape), params)
    updates, state = step(grads, state, params)
    params = optax.apply_updates(params, updates)
  return params, state


# Each leaves masked weights that are not zero, while the masks say 25 %.
WRONG = {
  "clip": lambda: optax.chain(sparse(), optax.clip(0.01)),
  "scale": lambda: optax.chain(sparse(), optax.scale(0.5)),
  "schedule": lambda: optax.chain(
    sparse(), optax.scale_by_schedule(optax.linear_schedule(0.1, 1.0, 10))
  ),
  "weight_decay": lambda: optax.chain(sparse(), optax.add_decayed_weights(0.1)),
  "ema": lambda: optax.chain(sparse(), optax.ema(0.9)),
  "layer_rate": lambda: optax.chain(
    sparse(), optax.partition({"a": optax.scale(0.1), "b": optax.identity()}, _labels)
  ),
  "trace": lambda: optax.chain(sparse(), optax.trace(0.9)),
  "normalize": lambda: optax.chain(sparse(), optax.normalize_by_update_norm()),
  "clip_by_global_norm": lambda: optax.chain(sparse(), optax.clip_by_global_norm(0.01)),
  # With masks that stand still its averages end at zero too.
  "schedule_free": lambda: contrib.schedule_free(
    sj.rigl(SGD, 0.25, update_every=2), 0.1
  ),
  "mechanize": lambda: contrib.mechanize(sparse()),
}


def _labels(params):
  return jax.tree.map(lambda p: "a" if p.ndim > 1 else "b", params)


RIGHT = {
  "clip": lambda: optax.chain(optax.clip(0.01), sparse()),
  "schedule": lambda: sparse(
    optax.chain(SGD, optax.scale_by_schedule(optax.cosine_decay_schedule(1.0, 10)))
  ),
  "weight_decay": lambda: sparse(optax.chain(optax.add_decayed_weights(0.1), SGD)),
  "ema": lambda: sparse(optax.chain(SGD, optax.ema(0.9))),
  "schedule_free": lambda: sparse(contrib.schedule_free(SGD, 0.1)),
  "mechanize": lambda: sparse(contrib.mechanize(SGD)),
  "multi_steps": lambda: optax.MultiSteps(sparse(), 2).gradient_transformation(),
  "apply_if_finite": lambda: optax.apply_if_finite(sparse(), 3),
  "partition": lambda: optax.partition({"a": sparse(), "b": SGD}, _labels),
  "packed": lambda: sj.packed_masks(sparse()),
  "frozen_outside": lambda: optax.partition(
    {"a": sparse(), "b": optax.set_to_zero()}, _labels
  ),
  "deep_r": lambda: sj.deep_r(SGD, 0.25),
  "grown": lambda: sj.initialize_grown(sj.rigl(SGD, 0.25, update_every=2), "random"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_orders_are_found(name):
  params, state = train(WRONG[name](), parameters())
  with pytest.raises(ValueError, match=r"must be 0 where masked, got \d+ masked"):
    sj.check_sparse(params, state)


@pytest.mark.parametrize("name", RIGHT)
def test_right_orders_pass(name):
  params, state = train(RIGHT[name](), parameters())
  sj.check_sparse(params, state)
  spoiled = dict(params, head=jnp.ones_like(params["head"]))
  # 24 weights, 6 of them live.
  with pytest.raises(ValueError, match="got 18 masked weights of 'head'"):
    sj.check_sparse(spoiled, state)


def test_nothing_is_promised_before_the_first_update():
  tx = sparse()
  state = tx.init(parameters())
  sj.check_sparse(parameters(), state)
  outside = optax.MultiSteps(tx, 4).gradient_transformation()
  params, state = train(outside, parameters(), steps=3)
  sj.check_sparse(params, state)
  params, state = train(outside, parameters(), steps=4)
  sj.check_sparse(params, state)
  with pytest.raises(ValueError, match="masked weights"):
    sj.check_sparse(parameters(), state)


def test_under_jit_it_is_a_check_of_checkify():
  for tx, broken in ((sparse(), False), (WRONG["scale"](), True)):
    chex.clear_trace_counter()

    @chex.assert_max_traces(n=1)
    def step(params, state, tx=tx):
      updates, state = tx.update(params, state, params)
      params = optax.apply_updates(params, updates)
      sj.check_sparse(params, state)
      return params, state

    checked = jax.jit(checkify.checkify(step))
    params = parameters()
    state = tx.init(params)
    for _ in range(2):
      error, (params, state) = checked(params, state)
    if broken:
      with pytest.raises(checkify.JaxRuntimeError, match="got 36 masked weights of"):
        error.throw()
    else:
      error.throw()


def test_lookahead_is_found_and_the_documented_way_passes():
  params = parameters()
  tx = optax.lookahead(sparse(), sync_period=2, slow_step_size=0.5)
  both, state = optax.LookaheadParams(params, params), None
  state = tx.init(both)
  step = jax.jit(tx.update)
  for enforced in (False, True):
    for _ in range(3):
      updates, state = step(params, state, both)
      both = optax.apply_updates(both, updates)
      if enforced:
        masks = sj.masks(state)
        both = optax.LookaheadParams(*(sj.apply_masks(p, masks) for p in both))
    if enforced:
      sj.check_sparse(both, state)
    else:
      with pytest.raises(ValueError, match=r"params\.(fast|slow) must be 0"):
        sj.check_sparse(both, state)


def test_averages_and_evaluation_params_are_checked_too():
  params, state = train(sparse(contrib.schedule_free(SGD, 0.1)), parameters())
  sj.check_sparse(params, state)
  evaluated = contrib.schedule_free_eval_params(state.inner_state, params)
  sj.check_sparse(evaluated, state)
  average = optax.incremental_update(params, parameters(), 0.5)
  with pytest.raises(ValueError, match="must be 0 where masked"):
    sj.check_sparse(average, state)


@pytest.mark.parametrize(
  "make",
  [
    lambda: sj.straight_through(SGD, 0.25),
    lambda: sj.sr_ste(SGD, 0.25),
    lambda: sj.s_ste(SGD, 0.25),
    lambda: sj.continuous_sparsification(SGD, 0.25, end_step=2),
    lambda: sj.spartan(SGD, 0.25, end_step=2, initial_density=0.25),
    lambda: sj.top_kast(SGD, 0.25),
    lambda: supermasks.edge_popup(SGD, 0.25),
    lambda: supermasks.bernoulli_supermask(SGD, 0.25),
  ],
)
def test_forward_side_methods_promise_budgets_alone(make):
  params, state = train(make(), parameters())
  assert any(bool(jnp.any(~m)) for m in jax.tree.leaves(sj.masks(state)))
  sj.check_sparse(params, state)
  head = sj.masks(state)["head"]
  [inside] = [
    s
    for s in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, sj.SparseState))
    if isinstance(s, sj.SparseState)
  ]
  masks = dict(inside.masks, head=~head)
  wrong = inside._replace(masks=masks)
  difference = abs(24 - 2 * int(head.sum()))
  with pytest.raises(ValueError, match=f"a difference of {difference} for 'head'"):
    sj.check_sparse(params, wrong)


def test_stacked_seeds_and_stacked_layers():
  params = {"kernel": normal(3, (3, 8, 6))}
  params, state = train(sparse(stacked="kernel"), params)
  sj.check_sparse(params, state)

  def member(seed):
    tx = sj.static_sparse(SGD, 0.25, seed=seed)
    params = parameters()
    updates, state = tx.update(params, tx.init(params), params)
    return optax.apply_updates(params, updates), state

  params, state = jax.vmap(member)(jnp.arange(2))
  sj.check_sparse(params, state)
  params["head"] = params["head"].at[1].set(1.0)
  with pytest.raises(ValueError, match="got 18 masked weights of 'head'"):
    sj.check_sparse(params, state)


def test_nnx_containers():
  model = nnx.Linear(8, 6, rngs=nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, sparse(), wrt=nnx.Param)
  loss = lambda m: jnp.sum(m(jnp.ones((2, 8))) ** 2)
  optimizer.update(model, nnx.grad(loss)(model))
  sj.check_sparse(nnx.state(model, nnx.Param), optimizer.opt_state)
  sj.check_sparse(nnx.to_pure_dict(nnx.state(model, nnx.Param)), optimizer.opt_state)
  model.kernel[...] = jnp.ones((8, 6))
  with pytest.raises(ValueError, match="got 36 masked weights of 'kernel'"):
    sj.check_sparse(nnx.state(model, nnx.Param), optimizer.opt_state)


def test_params_and_states_that_do_not_fit():
  params, state = train(sparse(), parameters(), steps=1)
  with pytest.raises(ValueError, match="opt_state must come from an optimizer made by"):
    sj.check_sparse(params, SGD.init(params))
  with pytest.raises(ValueError, match="params must have the structure"):
    sj.check_sparse({"other": params["head"]}, state)


def _frozen(mask):
  return optax.chain(optax.adam(0.1), optax.masked(optax.set_to_zero(), mask))


@pytest.mark.parametrize(
  ("inner", "frozen"),
  [
    (optax.set_to_zero(), ["body/kernel", "head"]),
    (
      optax.partition({"a": SGD, "b": optax.set_to_zero()}, {"body": "a", "head": "b"}),
      ["head"],
    ),
    (_frozen({"body": True, "head": False}), ["body/kernel"]),
    (optax.apply_if_finite(optax.set_to_zero(), 3), None),
  ],
)
def test_frozen_leaves_are_refused_at_init(inner, frozen):
  """Masks would remove weights that nothing may change."""
  tx = sj.rigl(inner, 0.25)
  if frozen is None:
    tx.init(parameters())  # the choice is the program's, not known before it runs
    return
  with pytest.raises(ValueError, match=r"where must leave out .* never moves") as e:
    tx.init(parameters())
  assert str(frozen) in str(e.value)
  if len(frozen) == 1:
    left = {"body/kernel": "head", "head": "body/kernel"}[frozen[0]]
    sj.rigl(inner, 0.25, where=left).init(parameters())


def test_a_warm_up_from_zero_is_not_frozen():
  inner = _frozen({"body": False, "head": False})
  inner = optax.chain(inner, optax.scale_by_schedule(optax.linear_schedule(0, 1, 9)))
  sj.rigl(inner, 0.25).init(parameters())


def test_lookahead_inside_is_refused_at_init():
  both = optax.LookaheadParams(parameters(), parameters())
  for params in (both, {"model": both}):
    with pytest.raises(ValueError, match=r"params must not be optax\.LookaheadParams"):
      sj.rigl(optax.lookahead(SGD, 2, 0.5), 0.25).init(params)


def test_sparse_inside_sparse_is_refused_at_init():
  for inner in (sparse(), optax.chain(optax.clip(1.0), sparse())):
    with pytest.raises(ValueError, match="inner must be a dense optimizer"):
      sj.sparse_momentum(inner, 0.25).init(parameters())


GROW = sj.chain(sj.drop(sj.magnitude, 0.3), sj.grow(sj.random))
ACPROP = contrib.acprop(1e-3, weight_decay=0.0)


def acprop_gradients(step):
  key = jax.random.fold_in(jax.random.key(5), step)
  return jax.random.normal(key, (32, 32))


@pytest.mark.parametrize(
  "tx",
  [
    sj.sparsify(ACPROP, GROW, 0.3, update_every=1000, mask_gradients=True),
    sj.deep_r(ACPROP, 0.3, update_every=1000),
    # Made by sparsify, too.
    pytest.param(
      sj.sparse_evolution(ACPROP, 0.3, update_every=1000), marks=pytest.mark.slow
    ),
    pytest.param(sj.rigl(ACPROP, 0.3, update_every=1000), marks=pytest.mark.slow),
  ],
  ids=["sparsify", "deep_r", "sparse_evolution", "rigl"],
)
def test_acprop_takes_grown_weights_no_further_than_live_ones(tx):
  """Without a second moment: 31 learning rates, then up to 14,729 at once."""
  params = {"kernel": normal(0, (32, 32))}
  state = tx.init(params)

  def step(carry, j):
    params, state = carry
    old = sj.masks(state)["kernel"]
    updates, state = tx.update({"kernel": acprop_gradients(j)}, state, params)
    new = sj.masks(state)["kernel"]
    params = optax.apply_updates(params, updates)
    # In learning rates; a step to zero is none of the optimizer's.
    moved = new & (params["kernel"] != 0)
    size = jnp.where(moved, jnp.abs(updates["kernel"]) / 1e-3, 0)
    return (params, state), (old, new, size)

  start = (sj.apply_masks(params, sj.masks(state)), state)
  run = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(3010)))
  old, new, size = map(np.asarray, run(start)[1])
  in_deep_r = hasattr(state, "positive")
  for t in (999, 1999, 2999):
    grown = new[t] & ~old[t]
    assert grown.sum() > 0
    assert in_deep_r or 0.5 < size[t][grown].max() <= 1
    # N(0, 1) in units of its deviation: 1024 of them, over ten steps, stay below six.
    assert size[t : t + 10][:, grown].max() < 6


def test_acprop_divides_a_grown_weight_by_the_mean_of_its_layer():
  """Against NumPy's ACProp: g / sqrt(max(mean v, g^2) / (1 - b2^t))."""
  tx = sj.sparsify(ACPROP, GROW, 0.3, update_every=1000, mask_gradients=True)
  params = {"kernel": normal(0, (32, 32))}
  state = tx.init(params)
  live = np.asarray(sj.masks(state)["kernel"])
  step = jax.jit(tx.update)
  m, v = np.zeros(live.sum()), np.zeros(live.sum())
  gradients = np.asarray(jax.vmap(acprop_gradients)(jnp.arange(1000)))
  for g in gradients:
    updates, state = step({"kernel": jnp.asarray(g)}, state, params)
    params = optax.apply_updates(params, updates)
    mean = v.mean()
    v = 0.999 * v + 0.001 * (g[live] - m) ** 2 + 1e-16
    m = 0.9 * m + 0.1 * g[live]
  grown = np.asarray(sj.masks(state)["kernel"]) & ~live
  g = gradients[-1][grown]
  expected = -1e-3 * g / np.sqrt(np.maximum(mean, g**2) / (1 - 0.999**999))
  np.testing.assert_allclose(updates["kernel"][grown], expected, rtol=1e-3)


def test_second_moments_are_filled_per_layer():
  """Two layers in one leaf, and an AdaBelief state inside of `optax.masked`."""
  inner = optax.masked(contrib.scale_by_acprop(), {"w": True, "b": False})
  params = {"w": jnp.zeros((2, 2, 2)), "b": jnp.zeros(3)}
  v = jnp.array([[[1.0, 3.0], [9.0, 9.0]], [[100.0, jnp.inf], [9.0, 9.0]]])
  masks = jnp.array([[[1, 1], [0, 0]], [[1, 1], [0, 0]]], bool)
  grads = {"w": jnp.array([[[5.0, 5], [0, 4]], [[5, 5], [0, 4]]]), "b": jnp.ones(3)}
  state = inner.init(params)
  state = jax.tree.map(lambda x: v if x.shape == v.shape else x, state)
  budgets = {"w": jnp.array([2, 2]), "b": None}
  filled: Any = fill_dead_second_moments(
    state, grads, params, {"w": masks, "b": None}, budgets
  )
  # Means 2 and 100 of live finite entries; squares 0 and 16 of the gradients.
  np.testing.assert_array_equal(
    filled.inner_state.nu["w"],
    [[[1.0, 3.0], [2.0, 16.0]], [[100.0, np.inf], [100.0, 100.0]]],
  )


def test_acprop_is_itself_where_nothing_grows():
  inner = contrib.acprop(0.1)
  params = {"kernel": normal(0, (16, 16))}
  tx = sj.static_sparse(inner, 1.0)
  state, other = tx.init(params), inner.init(params)
  step, alone = jax.jit(tx.update), jax.jit(inner.update)
  for i in range(5):
    grads = {"kernel": normal(i, (16, 16))}
    updates, state = step(grads, state, params)
    expected, other = alone(grads, other, params)
    np.testing.assert_allclose(updates["kernel"], expected["kernel"], rtol=1e-6)


def test_a_whole_module_of_equinox():
  """Its functions and integers have no masks, as in `update`."""
  model = eqx.nn.MLP(8, 4, 6, 1, key=jax.random.key(0))
  arrays, rest = eqx.partition(model, eqx.is_inexact_array)
  tx = sparse()
  state = tx.init(arrays)
  grads = jax.tree.map(jnp.ones_like, arrays)
  updates, state = tx.update(grads, state, model)
  model = eqx.apply_updates(model, updates)
  sj.check_sparse(model, state)
  spoiled = eqx.combine(
    jax.tree.map(lambda p: p + 1, eqx.filter(model, eqx.is_array)), rest
  )
  with pytest.raises(ValueError, match="params must be 0 where masked"):
    sj.check_sparse(spoiled, state)
  with pytest.raises(
    ValueError, match="params must have the structure they had at init"
  ):
    sj.check_sparse({"head": 3}, state)
