"""Moments are what they are taken for, under every optimizer of optax."""

import inspect
import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj
from sparsejax.transforms._moments import complete, factories_of, find_moments

contrib = optax.contrib


@pytest.fixture(autouse=True)
def standard_promotion():
  """optax's Adam mixes integer counts with floats, which strict promotion refuses."""
  with jax.numpy_dtype_promotion("standard"):
    yield


def loss(params):
  # Its second derivatives have both signs.
  return sum(jnp.sum(jnp.sin(3 * p)) for p in jax.tree.leaves(params))


# What the score of sparse momentum is made of: the gradient's size divided out
# ("divided"), or not ("plain"), or an average of one's own ("own").
KINDS = {
  "adabelief": "divided",
  "adam": "divided",
  "adamax": "divided",
  "adamaxw": "divided",
  "adamw": "divided",
  "adan": "divided",
  "amsgrad": "divided",
  "lamb": "divided",
  "nadam": "divided",
  "nadamw": "divided",
  "novograd": "divided",
  "optimistic_adam_v2": "divided",
  "radam": "divided",
  "sm3": "divided",
  "yogi": "divided",
  "adadelta": "own",
  "adafactor": "own",
  "adagrad": "own",
  "fromage": "own",
  "lars": "divided",
  "lbfgs": "own",
  "lion": "plain",
  "noisy_sgd": "own",
  "optimistic_gradient_descent": "own",
  "polyak_sgd": "own",
  "rmsprop": "own",
  "rprop": "own",
  "sgd": "own",
  "sign_sgd": "own",
  "signum": "plain",
  "acprop": "divided",
  "ademamix": "divided",
  "adopt": "divided",
  "cocob": "own",
  "dadapt_adamw": "own",
  "dog": "own",
  "dowg": "own",
  "galore": "own",
  "madgrad": "own",
  "momo": "own",
  "momo_adam": "own",
  "muon": "plain",
  "prodigy": "own",
  "schedule_free_adamw": "own",
  "schedule_free_sgd": "own",
  "simplified_ademamix": "divided",
  "sophia": "plain",
}
# One takes a batch of gradients per example, one is deprecated for its second version.
EXCLUDED = {"dpsgd", "optimistic_adam"}
ARGUMENTS = {
  "noisy_sgd": {"key": jax.random.key(0)},
  "polyak_sgd": {},
  "fromage": {"learning_rate": 0.01},
  # Its line search is most of the program that is compiled.
  "lbfgs": {"memory_size": 2, "linesearch": optax.scale_by_zoom_linesearch(3)},
}


def make(name):
  factory = getattr(optax, name, None) or getattr(contrib, name)
  kwargs = {"learning_rate": 0.01} if _needs_rate(factory) else {}
  return factory(**{**kwargs, **ARGUMENTS.get(name, {})})


def _needs_rate(factory):
  rate = inspect.signature(factory).parameters.get("learning_rate")
  return rate is not None and rate.default is inspect.Parameter.empty


def test_the_table_names_every_optimizer_of_optax():
  found = set()
  for module in (optax, contrib):
    for name in dir(module):
      factory = getattr(module, name)
      if name.startswith(("_", "scale")) or not inspect.isfunction(factory):
        continue
      if "learning_rate" in inspect.signature(factory).parameters:
        found.add(name)
  wrappers = {"schedule_free", "radamw"}
  assert found - wrappers - EXCLUDED <= set(KINDS)


def layers(scale):
  """Two equal layers, the second with gradients `scale` times as large."""
  rng = np.random.default_rng(0)
  p = jnp.asarray(rng.normal(size=(16, 16)), jnp.float32)
  params = {"a": {"kernel": p}, "b": {"kernel": p}}

  def gradients(step):
    g = jnp.asarray(np.random.default_rng(step).normal(size=p.shape), jnp.float32)
    return {"a": {"kernel": g}, "b": {"kernel": scale * g}}

  return params, gradients


def extra(params, name=""):
  """The further arguments that some optimizers need; lbfgs refuses others than its."""
  arguments = {
    "value": jnp.float32(1.0),
    "value_fn": loss,
    "grad": jax.tree.map(jnp.ones_like, params),
  }
  if name != "lbfgs":
    arguments |= {"loss": jnp.float32(1.0), "obj_fn": loss}
  return arguments


@pytest.mark.parametrize("name", KINDS)
def test_what_each_optimizer_keeps(name):
  params, gradients = layers(100.0)
  inner = optax.with_extra_args_support(make(name))
  state, chosen = inner.init(params), [True, True]
  update = jax.jit(lambda g, s: inner.update(g, s, params, **extra(params))[1])
  if KINDS[name] == "own":
    assert not complete(
      find_moments(state, params, chosen, factories_of(inner)), params, chosen
    )
    return
  for i in range(3):
    state = update(gradients(i), state)
  moments = find_moments(state, params, chosen, factories_of(inner))
  assert complete(moments, params, chosen)
  assert all(bool(jnp.all(v >= 0)) for v in jax.tree.leaves(moments.second))
  scores = sj.momentum(
    sj.ScoreInputs(params, params, moments, None, jax.random.key(0), jnp.int32(1))
  )
  ratio = float(jnp.mean(scores["b"]["kernel"]) / jnp.mean(scores["a"]["kernel"]))
  expected = 1.0 if KINDS[name] == "divided" else 100.0
  np.testing.assert_allclose(ratio, expected, rtol=0.05)


def run(name, scale, steps=4):
  """Live weights of two equal layers after mask updates, and how often it skipped."""
  params, gradients = layers(scale)
  tx = sj.sparse_momentum(
    make(name), 0.25, update_every=2, drop_fraction=0.5, momentum_decay=0.9
  )
  state = tx.init(params)
  # The same masks in both layers, so that only the gradients tell them apart.
  start = sj.masks(state)["a"]["kernel"]
  state = sj.with_masks(state, {"a": {"kernel": start}, "b": {"kernel": start}})
  params = sj.apply_masks(params, sj.masks(state))

  @jax.jit
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params, **extra(params, name))
    return optax.apply_updates(params, updates), state

  for i in range(steps):
    params, state = step(params, state, gradients(i))
  masks = sj.masks(state)
  assert int(sj.skipped_updates(state)) == 0
  assert bool(jnp.any(masks["a"]["kernel"] != start))
  for name in ("a", "b"):
    dead = params[name]["kernel"][~masks[name]["kernel"]]
    assert bool(jnp.all(dead == 0))
  live = [int(masks[name]["kernel"].sum()) for name in ("a", "b")]
  assert sum(live) == 128
  return live


@pytest.mark.parametrize("name", ["adopt", "sophia"])
def test_masks_move_where_names_mislead(name):
  live = run(name, 100.0)
  if KINDS[name] == "divided":
    assert abs(live[0] - live[1]) <= 2
  else:
    assert live[1] > live[0] + 30


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_masks_move_under_every_optimizer(name):
  live = run(name, 100.0)
  if KINDS[name] == "divided":
    assert abs(live[0] - live[1]) <= 6
  else:
    assert live[1] > live[0]


def test_adopt_is_known_inside_other_transforms():
  adopt = contrib.adopt(0.01)
  for inner in (
    optax.chain(optax.clip(1.0), adopt),
    optax.apply_if_finite(adopt, 3),
    optax.MultiSteps(adopt, 2).gradient_transformation(),
    optax.inject_hyperparams(contrib.adopt)(0.01),
    optax.inject_hyperparams(lambda learning_rate: contrib.adopt(learning_rate))(0.01),
    optax.partition({"all": adopt}, lambda p: jax.tree.map(lambda _: "all", p)),
    optax.masked(adopt, lambda p: jax.tree.map(lambda _: True, p)),
  ):
    params, _ = layers(1.0)
    moments = find_moments(
      inner.init(params), params, [True, True], factories_of(inner)
    )
    assert moments.first["a"]["kernel"] is not None
    assert moments.second["a"]["kernel"] is None


def test_an_unknown_second_moment_that_is_negative_is_none():
  """Somebody's own optimizer: the score is |m|, of all layers alike, and finite."""
  m = {"a": jnp.array([[1.0, -2.0]]), "b": jnp.array([[3.0, 4.0]])}
  v = {"a": jnp.array([[4.0, 4.0]]), "b": jnp.array([[-1.0, 4.0]])}
  given = sj.ScoreInputs(m, m, sj.Moments(m, v), None, jax.random.key(0), jnp.int32(1))
  scores = sj.momentum(given)
  assert scores["a"].tolist() == [[1.0, 2.0]]
  assert scores["b"].tolist() == [[3.0, 4.0]]
  # And curvature is the gradient's square: g^2 w^2 / 2 with w = g = m.
  assert sj.fisher(given)["b"].tolist() == [[40.5, 128.0]]
  v["b"] = jnp.array([[1.0, 4.0]])
  given = given._replace(moments=sj.Moments(m, v))
  np.testing.assert_allclose(sj.momentum(given)["a"], [[0.5, 1.0]], rtol=1e-6)
  assert sj.fisher(given)["b"].tolist() == [[4.5, 32.0]]


# Two layers with optimizers of their own, whose moments are not of one kind.
UNLIKE = {
  "sgd": optax.sgd(1e-6, momentum=0.9),
  "sgd without momentum": optax.sgd(1e-6),
  "lion": optax.lion(1e-6),
  "adopt": contrib.adopt(1e-6),
  "adan": optax.adan(1e-6),
  "adamax": optax.adamax(1e-6),
  "adam of other decays": optax.adam(1e-6, b1=0.5, b2=0.9),
}


def beside_adam(name):
  labels = {"a": {"kernel": "a"}, "b": {"kernel": "b"}}
  return optax.partition({"a": UNLIKE[name], "b": optax.adam(1e-6)}, labels)


def by_fisher(inner):
  shares = sj.redistribute(sj.fisher)
  transform = sj.chain(sj.drop(sj.magnitude, 0.5), shares, sj.grow(sj.random))
  return sj.sparsify(inner, transform, 0.4, update_every=2)


def by_momentum(inner):
  return sj.sparse_momentum(inner, 0.4, update_every=2)


# One without moments, one of signs, and second moments of other decays under both.
QUICK = [("sgd without momentum", by_momentum), ("lion", by_momentum)]
QUICK += [("adam of other decays", method) for method in (by_momentum, by_fisher)]


def _unlike():
  for pair in itertools.product(UNLIKE, (by_momentum, by_fisher)):
    yield pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow)


@pytest.mark.parametrize(("name", "method"), list(_unlike()))
def test_equal_gradients_share_equally_under_unlike_optimizers(name, method):
  """Equal layers, so half of the weights each, whatever the gradients' scale."""
  params, gradients = layers(1.0)
  tx = method(beside_adam(name))
  start = tx.init(params)
  mask = sj.masks(start)["a"]["kernel"]
  start = sj.with_masks(start, {"a": {"kernel": mask}, "b": {"kernel": mask}})
  step = jax.jit(tx.update)
  for scale in (0.01, 1.0, 100.0):
    p, state = sj.apply_masks(params, sj.masks(start)), start
    for i in range(4):
      grads = {"kernel": scale * gradients(i)["a"]["kernel"]}
      grads = {"a": grads, "b": grads}
      updates, state = step(grads, state, p)
      p = optax.apply_updates(p, updates)
    live = [int(sj.masks(state)[k]["kernel"].sum()) for k in ("a", "b")]
    assert sum(live) == 2 * int(mask.sum())
    assert abs(live[0] - live[1]) <= 8, (scale, live)


def test_moments_of_one_state_for_all_leaves_or_none():
  params, _ = layers(1.0)
  both = [True, True]
  adam = optax.adam(1e-3)
  labels = {"a": {"kernel": "a"}, "b": {"kernel": "b"}}
  for inner in (beside_adam("sgd"), optax.partition({"a": adam, "b": adam}, labels)):
    found = find_moments(inner.init(params), params, both, factories_of(inner))
    assert not jax.tree.leaves(found)
  # Adam holds both; that another state holds one of them too does not matter.
  inner = optax.chain(optax.masked(optax.trace(0.9), {"a": True, "b": False}), adam)
  state: Any = inner.init(params)
  found = find_moments(state, params, both, factories_of(inner))
  assert len(jax.tree.leaves(found.second)) == 2
  # Only the chosen leaves count.
  inner = beside_adam("sgd")
  found = find_moments(inner.init(params), params, [False, True], factories_of(inner))
  assert len(jax.tree.leaves(found.second)) == 1


def test_second_moments_of_some_layers_are_not_used():
  m = {"a": jnp.array([[1.0, -2.0]]), "b": jnp.array([[3.0, 4.0]])}
  v = {"a": jnp.array([[4.0, 4.0]]), "b": None}
  given = sj.ScoreInputs(m, m, sj.Moments(m, v), None, jax.random.key(0), jnp.int32(1))
  assert sj.momentum(given)["a"].tolist() == [[1.0, 2.0]]
  assert sj.fisher(given)["a"].tolist() == [[0.5, 8.0]]  # g^2 w^2 / 2


def test_momentum_without_an_average_is_refused_by_name():
  params, gradients = layers(1.0)
  transform = sj.chain(sj.drop(sj.magnitude, 0.5), sj.grow(sj.momentum))
  for inner in (beside_adam("sgd"), optax.sgd(0.1)):
    tx = sj.sparsify(inner, transform, 0.4, update_every=1)
    with pytest.raises(ValueError, match="momentum_decay must be a number where no"):
      tx.update(gradients(0), tx.init(params), params)


@pytest.mark.parametrize(
  ("name", "where", "averages"),
  [
    ("sgd", None, 2),
    ("adam of other decays", None, 2),
    ("sgd without momentum", None, 2),
    ("sgd without momentum", "b", 0),  # Adam has the moments of b
    ("sgd", "b", 0),
  ],
)
def test_tree_map_params_under_unlike_optimizers(name, where, averages):
  """States with and without an average are mapped, though no params are passed."""
  params, gradients = layers(1.0)
  sparse = sj.sparse_momentum(beside_adam(name), 0.4, where=where)
  state: Any = sparse.init(params)
  assert len(jax.tree.leaves(state.average)) == averages
  same = optax.tree_map_params(sparse, lambda x: x, state)
  assert jax.tree.structure(same) == jax.tree.structure(state)
  specs = optax.tree_map_params(
    sparse,
    lambda _, spec: spec,
    state,
    params,
    is_leaf=lambda leaf: leaf is None or isinstance(leaf, optax.MaskedNode),
  )
  chex.assert_trees_all_equal_structs(specs.average, params)
  _, after = jax.eval_shape(sparse.update, gradients(0), state, params)
  assert jax.tree.structure(after) == jax.tree.structure(state)
