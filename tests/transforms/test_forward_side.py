"""Methods whose masks act in the forward pass, against tables worked by hand."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import sparsejax as sj

SGD = optax.sgd(1.0)


def kernel(*values):
  return {"kernel": jnp.array([values], jnp.float32), "bias": jnp.zeros(2)}


def bits(masks):
  assert masks["bias"] is None
  return np.asarray(masks["kernel"]).astype(int).ravel().tolist()


def run(tx, params, *all_grads):
  """The first state, and what each step leaves."""
  state = tx.init(params)
  record = [(params, state)]
  step = jax.jit(tx.update)
  for grads in all_grads:
    updates, state = step(grads, state, params)
    params = optax.apply_updates(params, updates)
    record.append((params, state))
  return record


def test_effective_passes_every_gradient():
  params = kernel(4, 3, -2, 1)
  state = sj.straight_through(SGD, 0.5).init(params)
  weight = jnp.array([[1.0, 2.0, 3.0, 4.0]])
  loss = lambda p: jnp.sum(sj.effective(p, state)["kernel"] ** 2 * weight)
  value, grads = jax.jit(jax.value_and_grad(loss))(params)
  assert value == 16 + 18
  # 2 w e, and e is zero at the dead weights; not masked.
  np.testing.assert_array_equal(grads["kernel"], [[8, 12, 0, 0]])
  linear = lambda p: jnp.sum(sj.effective(p, state)["kernel"] * weight)
  np.testing.assert_array_equal(jax.grad(linear)(params)["kernel"], weight)
  np.testing.assert_array_equal(sj.effective(params, state)["bias"], params["bias"])
  # Forward over reverse goes through as well.
  hvp = jax.jvp(jax.grad(loss), (params,), (params,))[1]
  np.testing.assert_array_equal(hvp["kernel"], [[8, 12, -12, 8]])


def test_straight_through_masks_are_the_largest_of_the_new_weights():
  grads = [kernel(2.5, 0, -2, 0), kernel(-9, 0, 0, 0)]
  record = run(sj.straight_through(SGD, 0.5), kernel(4, 3, 2, 1), *grads)
  table = [
    ([4, 3, 2, 1], [1, 1, 0, 0]),
    ([1.5, 3, 4, 1], [0, 1, 1, 0]),
    ([10.5, 3, 4, 1], [1, 0, 1, 0]),  # a dead weight that grew comes back
  ]
  for (params, state), (weights, masks) in zip(record, table, strict=True):
    np.testing.assert_array_equal(params["kernel"], [weights])
    assert bits(sj.masks(state)) == masks
    exported = sj.apply_masks(params, sj.masks(state))
    np.testing.assert_array_equal(
      exported["kernel"], sj.effective(params, state)["kernel"]
    )
  assert int(record[-1][1].count) == 2


def test_random_masks_are_drawn_anew_when_due():
  params = {"kernel": jnp.ones((8, 8)), "bias": jnp.zeros(2)}
  tx = sj.straight_through(SGD, 0.25, score=sj.random, update_every=2)
  zero = jax.tree.map(jnp.zeros_like, params)
  masks = [sj.masks(state)["kernel"] for _, state in run(tx, params, *[zero] * 4)]
  assert [int(m.sum()) for m in masks] == [16] * 5
  moved = [bool(jnp.any(a != b)) for a, b in itertools.pairwise(masks)]
  assert moved == [False, True, False, True]


def test_density_may_be_a_schedule_and_layers_may_compete():
  params = {"a": jnp.array([[8.0, 7.0, 6.0, 1.0]]), "b": jnp.array([[5.0, 4.0]])}
  zero = jax.tree.map(jnp.zeros_like, params)
  schedule = lambda step: jnp.where(step < 1, jnp.float32(1), jnp.float32(0.5))
  tx = sj.straight_through(SGD, schedule, distribution=None)
  record = run(tx, params, zero)
  counts = [jax.tree.map(lambda m: int(m.sum()), sj.masks(s)) for _, s in record]
  assert counts == [{"a": 4, "b": 2}, {"a": 3, "b": 0}]


def test_sr_ste_pulls_dead_weights_down():
  tx = sj.sr_ste(SGD, 0.5, refinement=0.1)
  record = run(tx, kernel(4, 3, 2, -1), kernel(1, 0, 0, 1))
  # g + 0.1 w on the dead: (1, 0, 0.2, 1 - 0.1).
  params, state = record[-1]
  np.testing.assert_allclose(params["kernel"], [[3, 3, 1.8, -1.9]], rtol=1e-6)
  assert bits(sj.masks(state)) == [1, 1, 0, 0]
  np.testing.assert_array_equal(params["bias"], jnp.zeros(2))


def test_sr_ste_keeps_two_of_four_inputs():
  """2:4 along the inputs: a dead weight takes a live one's place in its group only."""
  columns = jnp.array([[4.0, 3.0, 2.0, 1.0], [-1.0, -2.0, 3.0, 9.0]]).T
  params = {"kernel": columns, "bias": jnp.zeros(2)}
  grads = {"kernel": jnp.zeros((4, 2)).at[3, 0].set(-5.0), "bias": jnp.zeros(2)}
  tx = sj.sr_ste(SGD, None, refinement=0.1, structure=sj.n_m(2, 4))
  (_, first), (params, last) = run(tx, params, grads)
  masks = [sj.masks(s)["kernel"].T.astype(int).tolist() for s in (first, last)]
  assert masks == [[[1, 1, 0, 0], [0, 0, 1, 1]], [[1, 0, 0, 1], [0, 0, 1, 1]]]
  expected = [[4, 3, 1.8, 5.9], [-0.9, -1.8, 3, 9]]
  np.testing.assert_allclose(params["kernel"].T, expected, rtol=1e-6)


def test_top_kast_trains_the_backward_set_only():
  inner = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(1.0))
  tx = sj.top_kast(inner, 0.25, backward_density=0.5, exploration=0.1)
  params = kernel(8, 7, 6, 5, 4, 3, 2, 1)
  ones = jax.tree.map(jnp.ones_like, params) | {"bias": jnp.zeros(2)}
  (_, first), (params, last) = run(tx, params, ones)
  assert bits(sj.masks(first)) == [1, 1, 0, 0, 0, 0, 0, 0]
  assert bits(first.transform_state) == [1, 1, 1, 1, 0, 0, 0, 0]
  # A: 1 + 0.1 w; B without A: 1 + 0.4 w; each + 0.5 w of the inner optimizer's.
  expected = [8 - 1.8 - 4, 7 - 1.7 - 3.5, 6 - 3.4 - 3, 5 - 3 - 2.5, 4, 3, 2, 1]
  np.testing.assert_allclose(params["kernel"], [expected], rtol=1e-5)
  assert bits(sj.masks(last)) == [0, 0, 0, 0, 1, 1, 0, 0]
  assert bits(last.transform_state) == [1, 0, 0, 0, 1, 1, 1, 0]


def test_forward_side_contract():
  """Exact counts, one compilation, the same under vmap and sharding, in bfloat16.

  On the method with the most state; the others run the same code with less of it.
  """
  tx = sj.top_kast(optax.sgd(0.5, momentum=0.5), 0.3, update_every=2)
  # Small integers: no layout rounds differently, and ties are everywhere.
  draw = lambda seed, *s: jax.random.randint(jax.random.key(seed), s, -8, 9)
  tree = lambda seed: {
    "a": draw(seed, 2, 8, 10).astype(jnp.bfloat16),
    "b": draw(seed + 1, 2, 10, 8).astype(jnp.bfloat16),
    "bias": jnp.ones((2, 10)),
  }
  member = lambda t, i=0: jax.tree.map(lambda x: x[i], t)

  def step(params, state, grads):
    sums = jax.grad(
      lambda p: sum(
        jnp.sum((e * g).astype(jnp.float32))
        for e, g in zip(
          *map(jax.tree.leaves, (sj.effective(p, state), grads)), strict=True
        )
      )
    )(params)
    updates, state = tx.update(sums, state, params, not_known=jnp.float32(0))
    return optax.apply_updates(params, updates), state

  def train(step, params, member):
    state = tx.init(params) if member is not None else jax.vmap(tx.init)(params)
    for seed in (10, 20):
      grads = tree(seed) if member is None else jax.tree.map(lambda x: x[0], tree(seed))
      params, state = step(params, state, grads)
    return params, state

  chex.clear_trace_counter()
  once = jax.jit(chex.assert_max_traces(step, n=1))
  params, state = train(once, member(tree(0)), 0)
  assert [int(m.sum()) for m in jax.tree.leaves(sj.masks(state))] == [24, 24]
  assert params["a"].dtype == jnp.bfloat16
  abstract = jax.eval_shape(tx.init, jax.eval_shape(lambda x: x, params))
  shapes = lambda t: jax.tree.map(lambda x: (x.shape, x.dtype), t)
  assert shapes(abstract) == shapes(state)

  mesh = Mesh(np.array(jax.devices()), ("d",))
  place = {"a": ("d", None), "b": (None, "d"), "bias": (None,)}
  sharded = {
    k: jax.device_put(p, NamedSharding(mesh, PartitionSpec(*place[k])))
    for k, p in member(tree(0)).items()
  }
  other, other_state = train(jax.jit(step), sharded, 0)
  assert other["a"].sharding.spec == PartitionSpec("d", None)
  chex.assert_trees_all_equal(other, params)
  chex.assert_trees_all_equal(other_state.masks, state.masks)
  batched, batched_state = train(jax.jit(jax.vmap(step)), tree(0), None)
  chex.assert_trees_all_equal(member(batched), params)
  chex.assert_trees_all_equal(member(batched_state.masks), state.masks)


@pytest.mark.parametrize(
  ("call", "error", "message"),
  [
    (lambda: sj.straight_through(None, 0.5), TypeError, "inner must be an optax"),
    (lambda: sj.straight_through(SGD, 0.0), ValueError, "density must lie in"),
    (lambda: sj.sr_ste(SGD, 0.5, refinement=-1), ValueError, "refinement .* got -1"),
    (
      lambda: sj.straight_through(SGD, 0.3, structure=sj.n_m(2, 4)),
      ValueError,
      "density must be 0.5 or None",
    ),
    (lambda: sj.top_kast(SGD, 1.5), ValueError, "density must lie in"),
    (
      lambda: sj.top_kast(SGD, 0.5, backward_density=0.25),
      ValueError,
      "backward_density must be at least density = 0.5, got 0.25",
    ),
    (lambda: sj.top_kast(SGD, 0.5, exploration=-1), ValueError, "exploration .* -1"),
    (
      lambda: sj.effective(kernel(1), SGD.init(kernel(1))),
      ValueError,
      "opt_state must come from an optimizer made by sparsejax",
    ),
  ],
)
def test_bad_input_is_named(call, error, message):
  with pytest.raises(error, match=message):
    call()


@pytest.mark.parametrize("update_every", [100, None])
def test_top_kast_trains_live_weights_of_masks_that_were_set(update_every):
  tx = sj.top_kast(SGD, density=0.25, update_every=update_every)
  params = kernel(4.0, 3.0, 2.0, 1.0)
  live = {"kernel": jnp.array([[False, False, False, True]]), "bias": None}
  state = sj.with_masks(tx.init(params), live)
  updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
  assert updates["kernel"][0, 3] != 0
