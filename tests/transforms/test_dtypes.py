"""Params, gradients and updates of different dtypes: zeros stay exact."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj
from sparsejax import supermasks
from sparsejax.growth import warm_up

NARROW = ("float32", "bfloat16", "float16")
PAIRS = [(p, g) for p in NARROW for g in NARROW]
WIDE = [("float64", g) for g in ("float64", "float32", "bfloat16", "float16")]
WIDE += [(p, "float64") for p in NARROW]
SCHEDULE = {"update_every": 2, "end_step": 4}


def wrapped(method, **kwargs):
  return lambda inner: method(inner, density=0.25, **SCHEDULE, **kwargs)


# Every wrapper that emits the step to zero, or one that must not disturb it.
WRAPPERS = {
  "static_sparse": lambda inner: sj.static_sparse(inner, 0.25),
  "sparse_momentum": wrapped(sj.sparse_momentum),
  "rigl": wrapped(sj.rigl),
  "rigl_random": wrapped(sj.rigl, grow_init="random"),
  "grown_gradient": lambda inner: sj.initialize_grown(
    wrapped(sj.sparse_evolution)(inner), "gradient"
  ),
  "grown_initial": lambda inner: sj.initialize_grown(
    wrapped(sj.sparse_evolution)(inner), "initial"
  ),
  "deep_r": lambda inner: sj.deep_r(inner, 0.25, noise=0.01),
  "dsr": wrapped(sj.dsr, threshold=0.5, drop_fraction=0.3),
  "ac_dc": wrapped(sj.ac_dc),
  "movement_pruning": wrapped(sj.movement_pruning),
  "packed_masks": lambda inner: sj.packed_masks(wrapped(sj.rigl)(inner)),
  "by_path": lambda inner: sj.by_path(inner, {"body": wrapped(sj.rigl)}),
}


# Optimizers whose updates come in the gradients' dtype.
def _sgd():
  return optax.sgd(0.1)


INNER = {
  "sgd": _sgd,
  "sign_sgd": lambda: optax.sign_sgd(0.1),
  "noisy_sgd": lambda: optax.noisy_sgd(0.1, key=jax.random.key(0)),
  "clip_sgd": lambda: optax.chain(optax.clip(0.5), optax.sgd(0.1)),
  "global_norm_sgd": lambda: optax.chain(
    optax.clip_by_global_norm(1.0), optax.sgd(0.1)
  ),
  "schedule": lambda: optax.sgd(optax.cosine_decay_schedule(0.1, 10)),
}


def parameters(dtype, where="body"):
  rng = np.random.default_rng(0)
  cast = lambda x: jnp.asarray(x, dtype)
  return {
    where: {"kernel": cast(rng.normal(size=(12, 8))), "bias": cast(np.ones(8))},
    "head": {"kernel": cast(rng.normal(size=(8, 8)))},
  }


def train(tx, params, dtype, steps=5):
  """After each step: params, masks, and the update of every kernel."""

  @jax.jit
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, updates

  state = tx.init(params)
  rng, seen = np.random.default_rng(1), []
  for _ in range(steps):
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), dtype), params)
    params, state, updates = step(params, state, grads)
    seen.append((params, sj.masks(state), updates))
  return seen


def assert_exact_zeros(seen, dtype):
  for params, masks, _ in seen:
    leaves, treedef = jax.tree.flatten(params)
    for p, m in zip(leaves, treedef.flatten_up_to(masks), strict=True):
      assert p.dtype == dtype
      if isinstance(m, jax.Array):
        assert 0 < int(m.sum()) <= m.size
        assert np.count_nonzero(np.asarray(p, np.float64)[~np.asarray(m)]) == 0
        assert np.all(np.isfinite(np.asarray(p, np.float64)))


@pytest.fixture(autouse=True)
def standard_promotion():
  """`optax.apply_updates` itself adds dtypes that differ."""
  with jax.numpy_dtype_promotion("standard"):
    yield


@pytest.mark.parametrize(("param", "grad"), WIDE)
def test_dead_weights_are_zero_in_double_precision(param, grad):
  with jax.enable_x64(True):
    seen = train(WRAPPERS["static_sparse"](optax.sgd(0.1)), parameters(param), grad)
    assert_exact_zeros(seen, param)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_dead_weights_are_zero_in_every_wrapper(wrapper):
  seen = train(WRAPPERS[wrapper](optax.sgd(0.1)), parameters("float32"), "bfloat16")
  assert_exact_zeros(seen, "float32")


@pytest.mark.parametrize("inner", INNER)
def test_dead_weights_are_zero_whatever_emits_the_gradients_dtype(inner):
  tx = WRAPPERS["static_sparse"](INNER[inner]())
  assert_exact_zeros(train(tx, parameters("float32"), "float16"), "float32")


def test_updates_of_an_inner_optimizer_in_a_third_dtype():
  to = lambda dtype: optax.stateless(
    lambda u, p: jax.tree.map(lambda x: x.astype(dtype), u)
  )
  for dtype in ("float32", "bfloat16"):
    tx = WRAPPERS["static_sparse"](optax.chain(optax.sgd(0.1), to(dtype)))
    assert_exact_zeros(train(tx, parameters("float16"), "bfloat16"), "float16")


@pytest.mark.parametrize(("param", "grad"), PAIRS)
def test_dead_weights_are_zero_and_live_ones_lose_nothing(param, grad):
  """They end where `optax.apply_updates` takes them with the inner update alone."""
  inner, params = optax.sgd(0.1), parameters(param)
  tx = WRAPPERS["static_sparse"](inner)
  seen = train(tx, params, grad, steps=2)
  assert_exact_zeros(seen, param)
  rng = np.random.default_rng(1)
  grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), grad), params)
  # Not compiled, for XLA may leave out a rounding between two operations.
  updates, state = tx.update(grads, tx.init(params), params)
  after, masks = optax.apply_updates(params, updates), sj.masks(state)
  alone, _ = inner.update(grads, inner.init(params), params)
  expected = optax.apply_updates(params, alone)
  for name in params:
    mask = masks[name]["kernel"]
    new, old = after[name]["kernel"], expected[name]["kernel"]
    np.testing.assert_array_equal(new[mask], old[mask])
    assert updates[name]["kernel"].dtype == jnp.promote_types(param, grad)
  assert updates["body"]["bias"].dtype == grad
  np.testing.assert_array_equal(after["body"]["bias"], expected["body"]["bias"])


@pytest.mark.parametrize("grad", ["bfloat16", "float16"])
def test_narrow_gradients_of_float32_kernels_under_strict_promotion(grad):
  """The emitted update has the params' dtype, so that the sum needs no promotion."""
  with jax.numpy_dtype_promotion("strict"):
    params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(12, 8)))}
    loose = optax.stateless(lambda u, p: jax.tree.map(lambda x: -x, u))
    seen = train(WRAPPERS["rigl"](loose), params, grad)
    assert_exact_zeros(seen, "float32")
    tx = sj.straight_through(loose, density=0.25)
    params, state = dict(params), tx.init(params)
    jax.jit(tx.update)({"kernel": jnp.ones((12, 8), grad)}, state, params)


def test_params_of_several_dtypes_in_one_tree():
  params = parameters("bfloat16")
  params["head"] = parameters("float32")["head"]
  for name in ("sparse_momentum", "deep_r"):
    tx = WRAPPERS[name](optax.sgd(0.1))
    for after, masks, _ in train(tx, params, "float16"):
      for group in params:
        kernel, mask = after[group]["kernel"], masks[group]["kernel"]
        assert kernel.dtype == params[group]["kernel"].dtype
        assert np.count_nonzero(np.asarray(kernel, np.float32)[~np.asarray(mask)]) == 0


def test_deep_r_sees_the_crossing_that_the_sum_makes():
  """1 - 1.001 < 0, though -1.001 rounds to -1 in bfloat16: the weight dies."""
  kernel = jnp.ones((1, 2), jnp.bfloat16)
  step = jnp.array([[-1.001, -0.5]], jnp.float32)
  inner = optax.stateless(lambda u, p: {"kernel": step})
  tx = sj.deep_r(inner, 1.0, l1=0.0)
  updates, state = tx.update(
    {"kernel": kernel}, tx.init({"kernel": kernel}), {"kernel": kernel}
  )
  after = optax.apply_updates({"kernel": kernel}, updates)["kernel"]
  assert after.tolist() == [[0.0, 0.5]]
  assert int(sj.masks(state)["kernel"].sum()) == 2  # another, or itself, is grown


@pytest.mark.parametrize("param", ["float32", "bfloat16"])
def test_grown_weights_start_where_they_are_told(param):
  """At their initial value, to the last bit, whatever the dtype of the gradients."""
  initial = parameters(param)
  tx = WRAPPERS["grown_initial"](optax.sgd(0.1))
  for grad in ("bfloat16", "float32"):
    seen = train(tx, initial, grad, steps=2)
    (_, before, _), (after, masks, _) = seen
    for name in initial:
      grown = masks[name]["kernel"] & ~before[name]["kernel"]
      assert int(grown.sum()) > 0
      np.testing.assert_array_equal(
        after[name]["kernel"][grown], initial[name]["kernel"][grown]
      )


def test_the_own_average_is_float32_at_least():
  """m = decay m + g: in bfloat16 0.999 is 1, in float16 ten times 10,000 is inf."""
  for param, size in (("bfloat16", 1.0), ("float16", 1e4)):
    params = {"kernel": jnp.ones((4, 4), param)}
    tx = sj.sparse_momentum(optax.sgd(0.1), 0.5, momentum_decay=0.999)
    state, update = tx.init(params), jax.jit(tx.update)
    expected = 0.0
    for i in range(20):
      grads = {"kernel": jnp.full((4, 4), size * (i < 10), param)}
      _, state = update(grads, state, params)
      expected = 0.999 * expected + float(grads["kernel"][0, 0])
    assert state.average["kernel"].dtype == jnp.float32
    np.testing.assert_allclose(state.average["kernel"], expected, rtol=1e-5)


def test_momentum_of_one_dtype_over_a_second_moment_of_another():
  """`optax.adam(mu_dtype=...)`; in float16 v underflows, and 0 / 0 is no score."""
  masks = {}
  for dtype in ("float32", "bfloat16"):
    # After the first step m / sqrt(v) is the same of all weights.
    tx = sj.sparse_momentum(optax.adam(0.01, mu_dtype=dtype), 0.25, update_every=3)
    seen = train(tx, parameters("float32"), "float32", steps=3)
    masks[dtype] = seen[-1][1]["body"]["kernel"]
  assert float((masks["float32"] == masks["bfloat16"]).mean()) > 0.9
  tx = sj.sparse_momentum(optax.adam(0.01), 0.25, update_every=1)
  params = parameters("float16")
  grads = jax.tree.map(lambda p: p * jnp.asarray(1e-5, p.dtype), params)
  _, state = jax.jit(tx.update)(grads, tx.init(params), params)
  assert int(sj.skipped_updates(state)) == 0


@pytest.mark.parametrize(
  "find", [supermasks.edge_popup, supermasks.bernoulli_supermask]
)
def test_learned_masks_leave_the_weights_whatever_the_gradients_dtype(find):
  params = parameters("float32")
  tx = find(optax.sgd(0.1), 0.5)
  for after, masks, _ in train(tx, params, "bfloat16", steps=2):
    chex.assert_trees_all_equal(after, params)
    assert 0 < int(masks["head"]["kernel"].sum()) < 64


def test_masks_of_the_forward_pass_are_those_of_the_rounded_params():
  """The largest of what `optax.apply_updates` makes, not of the unrounded sum."""
  for param, grad in (("float32", "bfloat16"), ("bfloat16", "float32")):
    tx = sj.straight_through(optax.sgd(0.1), 0.25)
    for after, masks, _ in train(tx, parameters(param), grad, steps=2):
      kernel, mask = after["body"]["kernel"], masks["body"]["kernel"]
      size = np.abs(np.asarray(kernel, np.float32))
      assert size[np.asarray(mask)].min() >= size[~np.asarray(mask)].max()
      seen = sj.apply_masks(after, masks)["body"]["kernel"]
      assert seen.dtype == param
      assert np.count_nonzero(np.asarray(seen, np.float32)) <= int(mask.sum())


def test_warm_up_takes_dropped_weights_to_zero_whole():
  tx = warm_up(functools.partial(sj.rigl, **SCHEDULE)(optax.sgd(0.1), 0.25), steps=4)
  assert_exact_zeros(train(tx, parameters("float32"), "bfloat16"), "float32")
