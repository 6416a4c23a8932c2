"""Scopes of `drop`, `grow_per_neuron`, shares by counts, `accumulate`: by hand.

Among them are regressions against the reference implementation of sparse momentum.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj


def inputs(params, masks, **kwargs):
  nothing = jax.tree.map(lambda _: None, params)
  given = {
    "params": params,
    "grads": params,
    "moments": sj.Moments(params, nothing),
    "masks": masks,
    "key": jax.random.key(0),
    "step": jnp.int32(1),
  }
  return sj.ScoreInputs(**(given | kwargs))


def rows(*lists, dtype=None):
  return {
    name: jnp.array([row], dtype) for name, row in zip("abc", lists, strict=False)
  }


def run(transform, args, budgets):
  budgets = {name: jnp.int32(b) for name, b in zip("abc", budgets, strict=False)}
  top = sj.Topology(args.masks, budgets, jnp.asarray(True))
  new, state = jax.jit(transform.update)(args, top, transform.init(args.params))
  assert bool(new.finite)
  return new, state


def bits(masks):
  return {k: np.asarray(m).astype(int).ravel().tolist() for k, m in masks.items()}


def numbers(tree):
  return [int(x) for x in jax.tree.leaves(tree)]


def test_drop_over_the_whole_network():
  params = rows([0.1, 0.2, 0.3, 0.4], [-5.0, 6.0, 0.25, 7.0], [0.01, 0.0, 0.0, 0.0])
  masks = rows([1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0], dtype=bool)
  new, _ = run(
    sj.drop(sj.magnitude, 0.5, scope="global"), inputs(params, masks), [4, 4, 1]
  )
  # ceil(2) + ceil(2) + ceil(.5) = 5 go: .01, .1, .2, .25, .3; c's last one stays.
  assert bits(new.masks) == {"a": [0, 0, 0, 1], "b": [1, 1, 0, 1], "c": [1, 0, 0, 0]}
  assert numbers(new.budgets) == [4, 4, 1]


def test_drop_by_sign():
  """The reference's SET deletes all but the most negative weights."""
  params = rows([3.0, 1.0, 2.0, 4.0, -1.0, -9.0, 0.0, 0.0], [-4.0, -3.0, -2.0, -1.0])
  masks = rows([1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1], dtype=bool)
  transform = sj.drop(sj.magnitude, 0.5, scope="sign")
  new, _ = run(transform, inputs(params, masks), [6, 4])
  # a: 3 of 6 go, 2 of its 4 positive and 1 of its 2 negative ones; b has one sign.
  assert bits(new.masks) == {"a": [1, 0, 0, 1, 0, 1, 0, 0], "b": [1, 1, 0, 0]}
  # A weight that is live at zero is the smallest positive one; the last one stays.
  few = rows([0.0, 1.0, -1.0], [0.0, -1.0, 0.0])
  live = rows([1, 1, 1], [0, 1, 0], dtype=bool)
  new, _ = run(transform, inputs(few, live), [3, 1])
  assert bits(new.masks) == {"a": [0, 1, 0], "b": [0, 1, 0]}


def test_grow_per_neuron():
  """The reference rounds down, and leaves out neurons that get fewer than ten."""
  # Columns are neurons; their means are 1, 4 and 3 of 8.
  scores = {"a": jnp.array([[1.0, 9.0, 2.0], [1.0, 2.0, 3.0], [1.0, 1.0, 4.0]])}
  masks = {"a": jnp.array([[1, 1, 0], [0, 0, 0], [0, 0, 0]], bool)}
  new, _ = run(sj.grow_per_neuron(sj.gradient), inputs(scores, masks), [6])
  # 4 in proportion 1 : 4 : 3 are .5, 2, 1.5: the odd one goes to the first.
  assert new.masks["a"].astype(int).tolist() == [[1, 1, 0], [1, 1, 0], [0, 1, 1]]
  new, _ = run(sj.grow_per_neuron(sj.gradient), inputs(scores, masks), [9])
  assert bool(new.masks["a"].all())


def test_grow_per_neuron_of_stacked_layers():
  scores = jax.random.uniform(jax.random.key(1), (2, 4, 3))
  masks = jax.random.bernoulli(jax.random.key(2), 0.2, (2, 4, 3))
  budgets = jnp.array([9, 6], jnp.int32)
  transform = sj.grow_per_neuron(sj.gradient)

  @jax.jit
  def grown(scores, masks, budgets):
    args = inputs(scores, masks)
    topology = sj.Topology(masks, budgets, jnp.asarray(True))
    return transform.update(args, topology, ())[0].masks

  both = grown({"a": scores}, {"a": masks}, {"a": budgets})["a"]
  assert both.sum((1, 2)).tolist() == [9, 6]
  for i in range(2):
    alone = grown({"a": scores[i]}, {"a": masks[i]}, {"a": budgets[i]})["a"]
    np.testing.assert_array_equal(both[i], alone)
  with pytest.raises(ValueError, match=r"rank 2 or more, got shape \(3,\)"):
    grown({"a": scores[0, 0]}, {"a": masks[0, 0]}, {"a": budgets[0]})


def test_shares_by_counts():
  """The reference's README names a redistribution that raises."""
  before = rows([1, 1, 1, 1] + [0] * 6, [1, 1] + [0] * 8, dtype=bool)
  after = rows([1] + [0] * 9, [1, 1] + [0] * 8, dtype=bool)
  args = inputs(jax.tree.map(lambda m: m.astype(jnp.float32), before), before)
  budgets = {"a": jnp.int32(4), "b": jnp.int32(2)}
  top = sj.Topology(after, budgets, jnp.asarray(True))
  got = [
    numbers(sj.redistribute(rule).update(args, top, ())[0].budgets)
    for rule in (sj.nonzeros, sj.survivors)
  ]
  # 3 free weights: in proportion 4 : 2, and 1 : 2.
  assert got == [[3, 3], [2, 4]]


def test_accumulate():
  params = rows([1.0, 2.0])
  transform = sj.accumulate(
    sj.signed_gradient, sj.grow(sj.accumulated_magnitude), decay=0.5, reset=True
  )
  state = transform.init(params)
  masks = rows([0, 0], dtype=bool)
  for grads in ([8.0, 1.0], [jnp.nan, 1.0], [-2.0, 1.0]):
    args = inputs(params, masks, grads=rows(grads))
    state = transform.observe(args, state)
  # 8/4 - 2 and 1/4 + 1/2 + 1; what is not finite is left out.
  np.testing.assert_allclose(state.total["a"], [[0.0, 1.75]])
  top = sj.Topology(masks, {"a": jnp.int32(1)}, jnp.asarray(True))
  new, state = jax.jit(transform.update)(args, top, state)
  assert bits(new.masks) == {"a": [0, 1]}
  assert not state.total["a"].any()
  assert sj.chain(transform, sj.grow(sj.random)).observe is not None
  assert sj.chain(sj.grow(sj.random)).observe is None


def test_noise():
  args = inputs(rows([1.0] * 400), rows([1] * 400, dtype=bool))
  noise = sj.noisy(sj.magnitude, 0.5)(args)["a"] - 1
  assert abs(float(noise.mean())) < 0.1
  assert 0.4 < float(noise.std()) < 0.6


def test_modes_of_sparse_momentum_by_name():
  modes = [
    {"drop_scope": "sign", "grow_score": sj.random, "redistribute_by": sj.magnitude},
    {"drop_scope": "global", "per_neuron": True, "redistribute_by": sj.nonzeros},
    {"redistribute_by": None},
  ]
  params = {"a": jax.random.normal(jax.random.key(3), (6, 5)), "b": jnp.ones((5, 4))}
  grads = {"a": params["a"] ** 2, "b": params["b"]}
  for mode in modes:
    tx = sj.sparse_momentum(optax.sgd(0.1, momentum=0.9), 0.4, update_every=1, **mode)
    state = tx.init(params)
    before = numbers(state.budgets)
    _, after = jax.jit(tx.update)(grads, state, params)
    budgets = numbers(after.budgets)
    # The reference's random and momentum_neuron growth miss the budget.
    assert [int(m.sum()) for m in jax.tree.leaves(after.masks)] == budgets
    assert sum(budgets) == 20
    assert bool(jnp.any(after.masks["a"] != state.masks["a"]))
    if mode["redistribute_by"] is None:
      assert budgets == before


def test_refused():
  with pytest.raises(ValueError, match=r"scope must be one of .*got 'net'"):
    sj.drop(sj.magnitude, 0.5, scope="net")
  with pytest.raises(ValueError, match=r"decay must lie in \(0, 1\], got 0"):
    sj.accumulate(sj.movement, sj.grow(sj.random), decay=0)
  with pytest.raises(TypeError, match="transform must be a MaskTransform"):
    sj.accumulate(sj.movement, sj.random)
  with pytest.raises(ValueError, match="deviation must be at least 0, got -1"):
    sj.noisy(sj.magnitude, -1)
  with pytest.raises(ValueError, match="must be used inside"):
    sj.accumulated(inputs(rows([1.0]), rows([1])))


def test_keep_passes_gradients_on_to_what_it_contains():
  transform = sj.accumulate(sj.signed_gradient, sj.grow(sj.accumulated_magnitude))
  tx = sj.sparsify(optax.sgd(0.0), sj.keep(transform), 0.5, update_every=3)
  params = {"kernel": jnp.ones((1, 4))}
  grads, state = {"kernel": jnp.array([[1.0, 2.0, 3.0, 4.0]])}, tx.init(params)
  for _ in range(2):
    _, state = jax.jit(tx.update)(grads, state, params)
  _, (total, _) = state.transform_state
  assert total["kernel"].tolist() == [[2.0, 4.0, 6.0, 8.0]]
