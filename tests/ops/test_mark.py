"""Marked zeros: who is marked, when, and that training does not notice."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax.ops import _record

BLOCKS = sj.block((32, 32))
SGD = optax.sgd(0.1, momentum=0.9)


def _marked(tree):
  """Returns a bool array per path, True where the weights are -0.0."""
  flat = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path): np.signbit(np.asarray(x)) & (np.asarray(x) == 0)
    for path, x in flat
  }


def _same_as_masks(params, state):
  """Marks are exactly where masks are False, and no value changes."""
  params = sj.apply_masks(params, sj.masks(state))
  marked = jax.jit(sj.mark_dead)(params, state)
  assert jax.tree.structure(marked) == jax.tree.structure(params)
  chex.assert_trees_all_equal(marked, params)
  masks = jax.tree.leaves(sj.masks(state))
  found = [m for m in _marked(marked).values() if m.any()]
  assert len(found) == len(masks) > 0
  for mark, mask in zip(found, masks, strict=True):
    np.testing.assert_array_equal(mark, ~np.asarray(mask))


def _dict():
  return {"a": jnp.ones((6, 5)), "b": {"kernel": jnp.ones((5, 4)), "bias": jnp.ones(4)}}


RIGL = functools.partial(sj.rigl, density=0.4)


@pytest.mark.parametrize(
  ("params", "tx"),
  [
    (_dict, lambda: RIGL(SGD)),
    (lambda: nn.Dense(5).init(jax.random.key(0), jnp.ones((1, 6))), lambda: RIGL(SGD)),
    (lambda: nnx.state(nnx.Linear(6, 5, rngs=nnx.Rngs(0))), lambda: RIGL(SGD)),
    (_dict, lambda: sj.packed_masks(RIGL(SGD))),
    (_dict, lambda: optax.chain(optax.clip(1.0), RIGL(SGD))),
    (_dict, lambda: optax.MultiSteps(RIGL(SGD), 2).gradient_transformation()),
    (
      _dict,
      lambda: optax.partition(
        {"k": RIGL(SGD), "o": SGD},
        lambda p: jax.tree.map(lambda x: "k" if x.ndim > 1 else "o", p),
      ),
    ),
    (_dict, lambda: sj.by_path(SGD, {"^a": RIGL, "^b": sj.static_sparse(SGD, 0.5)})),
    (lambda: {"w": jnp.ones((3, 6, 5))}, lambda: RIGL(SGD, stacked="w")),
    (lambda: {"w": jnp.ones((6, 5), jnp.bfloat16)}, lambda: RIGL(SGD)),
    (_dict, lambda: RIGL(SGD, grow_init="random")),
  ],
)
def test_marks_are_where_masks_are_false(params, tx):
  params, tx = params(), tx()
  _same_as_masks(params, tx.init(params))


def test_groups_of_one_optimizer_are_marked_each_by_its_own_method():
  tx = sj.by_path(SGD, {"^a": RIGL, "^b": functools.partial(sj.snfs, density=0.4)})
  params = _dict()
  state = tx.init(params)
  params = sj.apply_masks(params, sj.masks(state))
  marks = _marked(sj.mark_dead(params, state))
  assert marks["['a']"].sum() == 18
  assert not marks["['b']['kernel']"].any()


def test_live_negative_zeros_lose_their_sign_and_the_derivative_is_one():
  params = {"w": jnp.full((4, 4), -0.0)}
  state = sj.static_sparse(SGD, 0.5).init(params)
  np.testing.assert_array_equal(
    _marked(sj.mark_dead(params, state))["['w']"], ~np.asarray(state.masks["w"])
  )
  loss = lambda p: jnp.sum(3 * sj.mark_dead(p, state)["w"])
  np.testing.assert_array_equal(jax.grad(loss)(params)["w"], 3)


@pytest.mark.parametrize(
  ("method", "expected"),
  [
    # Mask updates fall due in the updates 4, 6 and 8 (start 2, every 2, end 8).
    (sj.rigl, "1110101011"),
    (sj.sparse_evolution, "1110101011"),
    (sj.static_sparse, "1111111111"),
    (sj.sparse_momentum, "0000000000"),
    (sj.snfs, "0000000000"),
    (functools.partial(sj.rigl, accumulate_gradients=True), "0000000000"),
    (functools.partial(sj.rigl, grow_init="gradient"), "1110101011"),
    (sj.straight_through, "0000000000"),
  ],
)
def test_marks_are_left_out_when_dense_gradients_are_needed(method, expected):
  tx = method(SGD, 0.4, update_every=2, start_step=2, end_step=8)
  params = {"w": jnp.ones((6, 5))}
  state = tx.init(params)

  @jax.jit
  def step(params, state):
    seen = sj.apply_masks(params, sj.masks(state))
    kernel = sj.mark_dead(seen, state)["w"]
    marked = jnp.any(jnp.signbit(kernel) & (kernel == 0))
    updates, state = tx.update(params, state, params)
    return optax.apply_updates(params, updates), state, marked

  found = ""
  for _ in expected:
    params, state, marked = step(params, state)
    found += str(int(marked))
  assert found == expected


@pytest.mark.parametrize("method", [sj.rigl, sj.sparse_momentum, sj.static_sparse])
def test_update_masks_says_what_comes(method):
  tx = method(SGD, 0.4, update_every=1)
  params = {"w": jnp.ones((6, 5))}
  state = tx.init(params)
  params = sj.apply_masks(params, sj.masks(state))

  @jax.jit
  def marked(flag):
    return jnp.any(jnp.signbit(sj.mark_dead(params, state, flag)["w"]))

  always = method is sj.sparse_momentum
  assert bool(marked(jnp.asarray(False))) == (not always)
  assert not marked(jnp.asarray(True))
  assert bool(marked(None)) == (method is sj.static_sparse)


def _mlp(dot):
  def loss(params, x, y):
    h = jax.nn.relu(dot(x, params["a"]["kernel"]))
    h = jax.nn.relu(dot(h, params["b"]["kernel"]))
    logits = h @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  return loss


@pytest.mark.parametrize(
  ("method", "dense_steps"),
  [
    (sj.rigl, [2, 5]),
    (sj.static_sparse, []),
    (sj.sparse_momentum, list(range(7))),
    (sj.straight_through, list(range(7))),
    pytest.param(sj.sparse_evolution, [2, 5], marks=pytest.mark.slow),
    pytest.param(
      functools.partial(sj.rigl, grow_init="random"), [2, 5], marks=pytest.mark.slow
    ),
  ],
  ids=["rigl", "static", "sparse_momentum", "forward", "set", "rigl_random"],
)
def test_training_marked_is_training_masked(method, dense_steps):
  """Masks equal at every step, weights to rounding, and the loop is what ran."""
  keys = iter(jax.random.split(jax.random.key(0), 5))
  normal = lambda *shape: jax.random.normal(next(keys), shape)
  params = {
    "a": {"kernel": normal(128, 256) / 8},
    "b": {"kernel": normal(256, 256) / 8},
    "head": normal(256, 10) / 16,
  }
  x, y = normal(32, 128), jnp.arange(32) % 10
  where = r"[ab]/kernel"
  tx = method(SGD, 0.05, update_every=3, where=where, structure=BLOCKS)
  forward = method is sj.straight_through

  def run(marked):
    # The share of live blocks below which blocks of 32 go through the loop is 0.1.
    dot = (lambda x, w: sj.block_dot(x, w, (32, 32))) if marked else jnp.matmul
    loss = _mlp(dot)

    @jax.jit
    def step(p, s):
      def seen(p):
        p = sj.effective(p, s) if forward else p
        return loss(sj.mark_dead(p, s) if marked else p, x, y)

      value, grads = jax.value_and_grad(seen)(p)
      updates, s = tx.update(grads, s, p)
      return optax.apply_updates(p, updates), s, value

    s = tx.init(params)
    p = params if forward else sj.apply_masks(params, sj.masks(s))
    history = []
    with _record.recording() as entries:
      for _ in range(7):
        p, s, value = step(p, s)
        history.append(jax.device_get((sj.masks(s), p, value)))
      jax.effects_barrier()
    return history, [entry["runs"] for entry in entries]

  (marked, paths), (masked, none) = run(True), run(False)
  assert not none
  for runs, blocks in zip(paths, (32, 64), strict=True):
    assert max(visited for visited, _ in runs) <= blocks // 10
    assert [i for i, (_, wanted) in enumerate(runs) if wanted == blocks] == dense_steps
  for (m0, p0, v0), (m1, p1, v1) in zip(marked, masked, strict=True):
    chex.assert_trees_all_equal(m0, m1)
    np.testing.assert_allclose(v0, v1, rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), p0, p1)
    for name in "ab" if not forward else "":
      assert np.all(p0[name]["kernel"][~m0[name]["kernel"]] == 0)


@pytest.mark.parametrize(
  ("call", "error", "message"),
  [
    (
      lambda p, s: sj.mark_dead(p, optax.sgd(0.1).init(p)),
      ValueError,
      "opt_state must",
    ),
    (
      lambda p, s: sj.mark_dead({"v": p["w"]}, s),
      ValueError,
      "params must have the str",
    ),
    (
      lambda p, s: sj.mark_dead({"w": p["w"].T}, s),
      ValueError,
      "params must have the sh",
    ),
    (lambda p, s: sj.mark_dead({"w": p["w"].astype(int)}, s), TypeError, "floating"),
    (lambda p, s: sj.mark_dead(p, s, 1), TypeError, "update_masks must be one bool"),
  ],
)
def test_bad_input(call, error, message):
  params = {"w": jnp.ones((6, 5))}
  with pytest.raises(error, match=message):
    call(params, RIGL(SGD).init(params))
