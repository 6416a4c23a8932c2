"""One-shot, global, movement pruning and AC/DC: tables by hand; what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj

STILL = optax.sgd(0.0)
PARAMS = {
  "a": jnp.array([[4.0, -3.0, 2.0, 1.0]]),
  "b": jnp.array([[-0.4, 0.3, 0.2, 0.1]]),
}


def bits(state):
  return [
    np.asarray(m).astype(int).ravel().tolist() for m in jax.tree.leaves(sj.masks(state))
  ]


def history(tx, grads, steps, params=PARAMS):
  """The masks after each step."""

  @jax.jit
  def step(params, state):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state, seen = tx.init(params), []
  for _ in range(steps):
    params, state = step(params, state)
    budgets = jax.tree.leaves(state.budgets)
    seen.append(bits(state))
    assert [sum(m) for m in seen[-1]] == [int(b) for b in budgets]
    flat = jax.tree.leaves(params)
    for p, m in zip(flat, jax.tree.leaves(sj.masks(state)), strict=True):
      assert not np.asarray(p)[~np.asarray(m)].any()
  return seen


ALL = [[1, 1, 1, 1], [1, 1, 1, 1]]
LAYERS = [[1, 1, 0, 0], [1, 1, 0, 0]]
NET = [[1, 1, 1, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize(("distribution", "after"), [(sj.uniform, LAYERS), (None, NET)])
def test_one_shot(distribution, after):
  tx = sj.one_shot(STILL, 0.5, update_every=2, start_step=1, distribution=distribution)
  assert history(tx, PARAMS, 5) == [ALL, ALL, after, after, after]


def test_global_magnitude_and_saliency():
  kwargs = {"update_every": 1, "end_step": 2}
  # The cubic at half time: .25 + .75 / 8 = .34375 of 8 weights, 3 after rounding.
  half = [[1, 1, 1, 0], [0, 0, 0, 0]]
  end = [[1, 1, 0, 0], [0, 0, 0, 0]]
  tx = sj.global_magnitude(STILL, 0.25, **kwargs)
  assert history(tx, PARAMS, 3) == [half, end, end]
  # |w g| = .4 .3 .2 .1 and 4 3 2 1.
  grads = {"a": jnp.full((1, 4), 0.1), "b": jnp.full((1, 4), -10.0)}
  tx = sj.global_saliency(STILL, 0.25, **kwargs)
  assert history(tx, grads, 3) == [half[::-1], end[::-1], end[::-1]]


def test_movement_pruning():
  params = {"a": jnp.array([[4.0, -4.0, 0.5, -0.5]])}
  # -w g: the large ones shrink, the small ones grow, the third most.
  grads = {"a": jnp.array([[0.2, -0.1, -1.0, 0.5]])}
  tx = sj.movement_pruning(optax.sgd(0.1), 0.25, update_every=2, end_step=4)
  state = tx.init(params)
  _, state = jax.jit(tx.update)(grads, state, params)
  np.testing.assert_allclose(
    state.transform_state.total["a"], [[-0.8, -0.4, 0.5, 0.25]], rtol=1e-6
  )
  third = [[0, 0, 1, 0]]  # .34 of 4 are 1 at half time already
  assert history(tx, grads, 4, params) == [[[1, 1, 1, 1]]] * 1 + [third] * 3


def test_ac_dc():
  tx = sj.ac_dc(STILL, 0.5, update_every=2, start_step=1, end_step=9)
  phases = history(tx, PARAMS, 10)
  # Sparse after step 3, dense after 5, sparse after 7, and after the last at 9.
  dense, sparse = [ALL] * 2, [LAYERS] * 2
  assert phases == dense + sparse + dense + [LAYERS] * 4
  first = functools.partial(sj.ac_dc, STILL, 0.5, update_every=1)
  tx = first(sparse=lambda step: step == 2)
  assert history(tx, PARAMS, 3) == [ALL, LAYERS, ALL]


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: sj.one_shot(STILL, 0.5, end_step=99), "end_step must be at least .* 100"),
    (
      lambda: sj.global_magnitude(STILL, 0.5, end_step=200, distribution=sj.erk),
      "distribution must be None for global_magnitude",
    ),
    (lambda: sj.global_saliency(STILL, 0.5), "end_step must be given"),
    (lambda: sj.movement_pruning(STILL, 0.5), "end_step must be given"),
    (lambda: sj.ac_dc(STILL, 0.5, update_every=None), "update_every must be an int"),
    (lambda: sj.by_path(STILL, {}), "methods must name at least one group"),
    (lambda: sj.by_path(STILL, {"(": sj.dense}), r"valid regexes as keys, got '\('"),
    (
      lambda: sj.by_path(STILL, {"a": sj.dense, "a|b": sj.dense}).init(PARAMS),
      "methods must not overlap, got 'a' matched by each of",
    ),
    (
      lambda: sj.by_path(STILL, {"c": sj.dense}).init(PARAMS),
      r"methods must match leaves, got \['c'\]",
    ),
  ],
)
def test_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
  with pytest.raises(TypeError, match="functions from an optimizer"):
    sj.by_path(STILL, {"a": 0.5})


def test_granet_prunes_then_drops_and_regrows():
  params = {"a": jnp.array([[8.0, -7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])}
  grads = {"a": jnp.array([[0.0, 5.0, 0.0, 0.0, 1.0, 0.0, 0.0, -9.0]])}
  tx = sj.granet(STILL, 0.25, update_every=1, end_step=2)
  # The cubic gives 3 of 8 (.34375), then 2. First 8, 7 and 6 stay, the last two of them
  # are dropped, and the gradients 9 and 5 return the 1 and the 7, with their values.
  # Then the 1 is pruned, the 7 dropped, and the 1 returns.
  masks = [[1, 1, 0, 0, 0, 0, 0, 1]], [[1, 0, 0, 0, 0, 0, 0, 1]]
  assert history(tx, grads, 3, params) == [masks[0], masks[1], masks[1]]
  # Over both layers: all of `b` is smaller than all of `a`.
  tx = sj.granet(STILL, 0.25, update_every=1, end_step=1, drop_fraction=0.0)
  assert history(tx, PARAMS, 1) == [[[1, 1, 0, 0], [0, 0, 0, 0]]]
  # Sparse from the start, by the budgets of ERK, which makes small layers dense.
  tx = sj.granet(STILL, 0.5, update_every=1, end_step=9, initial_density=0.75)
  shapes = {"a": jnp.ones((16, 16)), "b": jnp.ones((16, 4))}
  state = tx.init(shapes)
  assert [int(m.sum()) for m in jax.tree.leaves(state.masks)] == [176, 64]


@pytest.mark.parametrize(
  ("structure", "density"),
  [(sj.n_m(2, 4), None), (sj.transposable_n_m(2, 4), None), (sj.block((2, 2)), 0.25)],
)
def test_granet_under_structures(structure, density):
  rng = np.random.default_rng(0)
  params = {"a": jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)}
  grads = {"a": jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)}
  kwargs = {"distribution": sj.uniform, "structure": structure, "update_every": 1}
  tx = sj.granet(STILL, density, end_step=3, **kwargs)
  *_, end = history(tx, grads, 4, params)
  mask = np.asarray(end[0]).reshape(8, 4)
  if density is None:
    assert (mask.reshape(2, 4, 4).sum(1) == 2).all()
    if structure.name.startswith("transposable"):
      assert (mask.sum(1) == 2).all()
  else:
    blocks = mask.reshape(4, 2, 2, 2).sum((1, 3))
    assert sorted(set(blocks.ravel())) == [0, 4]
    assert mask.sum() == 8
