"""`sparsify`: when masks change, what the update is, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj

PARAMS = {
  "body": {
    "kernel": jnp.linspace(-2.0, 2.0, 60).reshape(6, 10) + 0.01,
    "bias": jnp.zeros(10),
  },
  "head": {"kernel": jnp.linspace(1.0, -1.0, 20).reshape(10, 2), "bias": jnp.zeros(2)},
}


@pytest.fixture(autouse=True)
def standard_promotion():
  """optax's Adam mixes integer counts with floats, which strict promotion refuses."""
  with jax.numpy_dtype_promotion("standard"):
    yield


def gradients(step, params=PARAMS):
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.fold_in(jax.random.key(7), step), len(leaves))
  return treedef.unflatten(
    jax.random.normal(k, p.shape, p.dtype) for k, p in zip(keys, leaves, strict=True)
  )


def live(state):
  return [int(m.sum()) for m in jax.tree.leaves(sj.masks(state))]


def same(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(bool((x == y).all()) for x, y in pairs)


def stepper(tx):
  @jax.jit
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  return step


def jitted(tx):
  """Run eagerly, every loop of a mask update would compile by itself."""
  update = jax.jit(tx.update)
  return optax.GradientTransformationExtraArgs(jax.jit(tx.init), update)


def changes(tx, steps, params=PARAMS):
  """The steps (1-based) after which the masks differ from before."""
  state = tx.init(params)
  step = stepper(tx)
  changed = []
  for i in range(steps):
    before = sj.masks(state)
    params, state = step(params, state, gradients(i))
    if not same(before, sj.masks(state)):
      changed.append(i + 1)
  return changed


@pytest.mark.parametrize(
  ("kwargs", "expected"),
  [
    ({"update_every": 3}, [3, 6, 9, 12]),
    ({"update_every": 3, "start_step": 4}, [7, 10]),
    ({"update_every": 3, "end_step": 8}, [3, 6]),
    ({"update_every": 3, "end_step": 9}, [3, 6, 9]),
    ({"update_every": 1, "start_step": 9}, [10, 11, 12]),
    ({"update_every": None}, []),
  ],
)
def test_when_masks_change(kwargs, expected):
  tx = sj.sparse_evolution(optax.sgd(0.01), 0.5, drop_fraction=0.5, **kwargs)
  assert changes(tx, 12) == expected


def test_flag_overrides_the_schedule():
  tx = optax.chain(
    optax.clip(1.0), sj.sparse_evolution(optax.sgd(0.01), 0.5, update_every=None)
  )
  tx = jitted(tx)
  state = tx.init(PARAMS)
  for flag in (True, False):
    _, new = tx.update(gradients(0), state, PARAMS, update_masks=flag)
    assert same(sj.masks(state), sj.masks(new)) is not flag


def test_updates_are_the_inner_ones_where_live_and_exact_zeros_elsewhere():
  inner = optax.adamw(0.1, weight_decay=0.3)
  tx = sj.sparse_momentum(inner, 0.3, update_every=2)
  tx = jitted(tx)
  state, inner_state = tx.init(PARAMS), inner.init(PARAMS)
  params = PARAMS
  for i in range(5):
    grads = gradients(i)
    u, inner_state = inner.update(grads, inner_state, params)
    updates, state = tx.update(grads, state, params)
    # Compiled and eager programs round differently; the way to zero is exact.
    np.testing.assert_allclose(updates["body"]["bias"], u["body"]["bias"], rtol=1e-5)
    for name in ("body", "head"):
      mask, p = sj.masks(state)[name]["kernel"], params[name]["kernel"]
      update, expected = updates[name]["kernel"], u[name]["kernel"]
      np.testing.assert_allclose(update[mask], expected[mask], rtol=1e-5)
      np.testing.assert_array_equal(update[~mask], -p[~mask])
    params = optax.apply_updates(params, updates)
    for name in ("body", "head"):
      dead = params[name]["kernel"][~sj.masks(state)[name]["kernel"]]
      assert (np.asarray(dead) == 0.0).all()


def test_a_mask_update_does_not_replace_the_step():
  """A grown weight starts from zero and takes this step's update."""
  inner = optax.sgd(0.1, momentum=0.9)
  tx = sj.sparse_momentum(inner, 0.3, update_every=1)
  tx = jitted(tx)
  state = tx.init(PARAMS)
  params = sj.apply_masks(PARAMS, sj.masks(state))
  before = sj.masks(state)["body"]["kernel"]
  grads = gradients(0)
  updates, state = tx.update(grads, state, params)
  after = sj.masks(state)["body"]["kernel"]
  grown = after & ~before
  assert int(grown.sum()) > 0
  new = optax.apply_updates(params, updates)["body"]["kernel"]
  np.testing.assert_array_equal(new[grown], -0.1 * grads["body"]["kernel"][grown])


def test_regrown_weights_keep_their_value_and_momentum_is_never_reset():
  params = {"kernel": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
  tx = sj.sparse_momentum(optax.sgd(0.1, momentum=0.9), 1.0, update_every=1)
  tx = jitted(tx)
  state = tx.init(params)
  for i in range(3):
    grads = {"kernel": jnp.full((1, 4), float(i))}
    updates, state = tx.update(grads, state, params)
  # All four are live: half are dropped and come back, with what they were.
  assert live(state) == [4]
  np.testing.assert_allclose(updates["kernel"], -0.1 * 2.9, rtol=1e-6)
  trace = optax.tree.get(state, "trace")["kernel"]
  np.testing.assert_allclose(trace, [[2.9] * 4], rtol=1e-6)


def test_masked_gradients_never_reach_the_inner_optimizer():
  tx = sj.static_sparse(optax.sgd(0.1, momentum=0.9), 0.25)
  tx = jitted(tx)
  state = tx.init(PARAMS)
  _, state = tx.update(gradients(0), state, PARAMS)
  trace = optax.tree.get(state, "trace")["body"]["kernel"]
  assert same(trace == 0, ~sj.masks(state)["body"]["kernel"])
  dense = sj.sparse_momentum(optax.sgd(0.1, momentum=0.9), 0.25)
  dense = jitted(dense)
  _, state = dense.update(gradients(0), dense.init(PARAMS), PARAMS)
  assert (optax.tree.get(state, "trace")["body"]["kernel"] != 0).all()


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_non_finite_scores_skip_the_mask_update(bad):
  tx = sj.rigl(optax.sgd(0.1), 0.3, update_every=1)
  tx = jitted(tx)
  state = tx.init(PARAMS)
  grads = gradients(0)
  grads["head"]["kernel"] = grads["head"]["kernel"].at[0, 0].set(bad)
  # Wherever the bad value is, live or dead, it must be dead to be a growth score.
  mask = sj.masks(state)["head"]["kernel"]
  position = jnp.argwhere(~mask)[0]
  grads["head"]["kernel"] = (
    jnp.zeros_like(mask, jnp.float32).at[tuple(position)].set(bad)
  )
  updates, after = tx.update(grads, state, PARAMS)
  assert same(sj.masks(state), sj.masks(after))
  assert same(after.budgets, state.budgets)
  assert int(sj.skipped_updates(after)) == 1
  assert int(after.count) == 1
  new = optax.apply_updates(PARAMS, updates)
  assert bool(jnp.isfinite(new["head"]["kernel"]).all())
  _, later = tx.update(gradients(1), after, new)
  assert not same(sj.masks(later), sj.masks(after))
  assert int(sj.skipped_updates(later)) == 1


def test_budgets_move_and_their_sum_does_not():
  tx = sj.sparse_momentum(optax.adam(0.01), 0.2, update_every=1, distribution=sj.erk)
  state, params = tx.init(PARAMS), PARAMS
  step, seen = stepper(tx), set()
  for i in range(30):
    params, state = step(params, state, gradients(i))
    budgets = [int(b) for b in jax.tree.leaves(state.budgets)]
    assert live(state) == budgets
    assert sum(budgets) == round(0.2 * 80)
    assert budgets[1] <= 20
    seen.add(tuple(budgets))
  assert len(seen) > 2


def test_gradual_magnitude_reaches_its_density_exactly():
  tx = sj.gradual_magnitude(
    optax.sgd(0.01), 0.1, update_every=4, start_step=3, end_step=22, distribution=sj.erk
  )
  state, params = tx.init(PARAMS), PARAMS
  assert live(state) == [60, 20]
  step, totals = stepper(tx), []
  for i in range(25):
    params, state = step(params, state, gradients(i))
    totals.append(sum(live(state)))
  # Updates after 7, 11, 15, 19 steps, at quarters of the cubic.
  expected = [round(80 * (0.1 + 0.9 * (1 - t / 4) ** 3)) for t in (1, 2, 3, 4)]
  assert totals[6::4][:4] == expected
  assert totals[-1] == 8
  assert totals == sorted(totals, reverse=True)


def test_gradual_magnitude_takes_a_schedule():
  tx = sj.gradual_magnitude(
    optax.sgd(0.01),
    lambda step: 1.0 - step.astype(jnp.float32) / 4,
    update_every=1,
    end_step=99,
  )
  state, params = tx.init(PARAMS), PARAMS
  step, totals = stepper(tx), []
  for i in range(6):
    params, state = step(params, state, gradients(i))
    totals.append(sum(live(state)))
  assert totals == [60, 40, 20, 2, 2, 2]  # below zero counts as one weight a layer


def test_stacked_layers_have_budgets_of_their_own():
  params = {"kernel": jax.random.normal(jax.random.key(0), (3, 8, 5)) + 0.1}
  tx = sj.sparse_momentum(
    optax.sgd(0.1, momentum=0.9), 0.2, update_every=1, stacked="kernel"
  )
  state = tx.init(params)
  assert state.budgets["kernel"].tolist() == [8, 8, 8]
  step = stepper(tx)
  for i in range(4):
    params, state = step(params, state, gradients(i, params))
    rows = sj.masks(state)["kernel"].sum((1, 2))
    assert rows.tolist() == state.budgets["kernel"].tolist()
    assert int(rows.sum()) == 24
  # The same three layers as separate leaves give the same masks.
  split = {str(i): params["kernel"][i] for i in range(3)}
  alone = sj.rigl(optax.sgd(0.1), 0.2, update_every=1)
  together = sj.rigl(optax.sgd(0.1), 0.2, update_every=1, stacked="kernel")
  alone, together = jitted(alone), jitted(together)
  masks = sj.masks(together.init(params))["kernel"]
  state_a, state_b = alone.init(split), together.init(params)
  state_a = state_a._replace(masks={str(i): masks[i] for i in range(3)})
  grads = gradients(9, params)
  _, state_a = alone.update(
    {str(i): grads["kernel"][i] for i in range(3)}, state_a, split
  )
  _, state_b = together.update(grads, state_b, params)
  for i in range(3):
    assert same(sj.masks(state_a)[str(i)], sj.masks(state_b)["kernel"][i])


def test_own_average_where_the_inner_optimizer_has_no_momentum():
  tx = sj.sparse_momentum(optax.sgd(0.1), 0.3, update_every=1)
  with_momentum = sj.sparse_momentum(optax.sgd(0.1, momentum=0.9), 0.3, update_every=1)
  tx, with_momentum = jitted(tx), jitted(with_momentum)
  state, other = tx.init(PARAMS), with_momentum.init(PARAMS)
  assert other.average is None
  grads = gradients(0)
  _, state = tx.update(grads, state, PARAMS)
  _, other = with_momentum.update(grads, other, PARAMS)
  assert same(state.average["body"]["kernel"], grads["body"]["kernel"])
  assert same(sj.masks(state), sj.masks(other))


def test_seeds_differ_and_repeat():
  def start(seed):
    return sj.masks(sj.rigl(optax.sgd(0.1), 0.3, seed=seed).init(PARAMS))

  assert same(start(1), start(1))
  assert not same(start(1), start(2))


@pytest.mark.parametrize(
  ("kwargs", "error", "message"),
  [
    ({"density": 0}, ValueError, r"density must lie in \(0, 1\], got 0"),
    ({"density": 1.1}, ValueError, r"density must lie in \(0, 1\], got 1.1"),
    ({"density": "a"}, TypeError, "density must be a number in .*got 'a'"),
    ({"density": True}, TypeError, "density must be a number"),
    (
      {"drop_fraction": 1.0},
      ValueError,
      r"drop_fraction must lie in \[0, 1\), got 1.0",
    ),
    ({"drop_fraction": -0.1}, ValueError, r"drop_fraction must lie in \[0, 1\)"),
    ({"update_every": 0}, ValueError, "update_every must be at least 1, got 0"),
    ({"update_every": 2.5}, TypeError, "update_every must be an integer, got 2.5"),
    ({"start_step": -1}, ValueError, "start_step must be at least 0, got -1"),
    ({"start_step": None}, TypeError, "start_step must be an integer, got None"),
    ({"end_step": -1}, ValueError, "end_step must be at least 0, got -1"),
    ({"seed": "x"}, TypeError, "seed must be an integer, got 'x'"),
    ({"inner": None}, TypeError, "inner must be an optax optimizer, got None"),
  ],
)
def test_refused_at_once(kwargs, error, message):
  arguments = {"inner": optax.sgd(0.1), "density": 0.1, **kwargs}
  with pytest.raises(error, match=message):
    sj.sparse_momentum(arguments.pop("inner"), arguments.pop("density"), **arguments)


def test_refused_at_init_and_update():
  tx = sj.rigl(optax.sgd(0.1), 0.3)
  state = tx.init(PARAMS)
  with pytest.raises(ValueError, match="params must be passed to update"):
    tx.update(gradients(0), state)
  with pytest.raises(
    ValueError, match="params must have the structure they had at init"
  ):
    tx.update(gradients(0), state, {"other": jnp.ones((2, 2))})
  with pytest.raises(ValueError, match="where must select at least one leaf"):
    sj.rigl(optax.sgd(0.1), 0.3, where="nothing").init(PARAMS)
  with pytest.raises(TypeError, match="where must select floating-point leaves"):
    sj.rigl(optax.sgd(0.1), 0.3, where="n").init({"n": jnp.ones((2, 2), jnp.int32)})
  with pytest.raises(ValueError, match="1 weights for 2 layers"):
    sj.rigl(optax.sgd(0.1), 0.01).init(PARAMS)
  with pytest.raises(ValueError, match="stacked must select leaves of rank 2 or more"):
    sj.rigl(optax.sgd(0.1), 0.3, where="bias", stacked="bias").init(PARAMS)


def test_gradual_magnitude_refuses():
  with pytest.raises(ValueError, match="end_step must be given"):
    sj.gradual_magnitude(optax.sgd(0.1), 0.1)
  with pytest.raises(ValueError, match=r"end_step must be at least .* = 150, got 120"):
    sj.gradual_magnitude(optax.sgd(0.1), 0.1, start_step=50, end_step=120)


@pytest.mark.parametrize(
  "method",
  [
    lambda inner: sj.rigl(inner, 0.25, update_every=1),
    lambda inner: sj.straight_through(inner, 0.25, update_every=1),
  ],
  ids=["rigl", "straight_through"],
)
def test_update_passes_over_what_is_no_array(method):
  """A whole module of equinox holds integers and functions, without gradients."""
  kernel = jnp.linspace(-1.0, 1.0, 16).reshape(4, 4)
  arrays = {"kernel": kernel, "size": None, "activation": None}
  model = {"kernel": kernel, "size": 4, "activation": jax.nn.relu}
  grads = {"kernel": jnp.cos(9 * kernel), "size": None, "activation": None}
  tx = method(optax.adamw(0.1))
  state = tx.init(arrays)
  wanted, _ = tx.update(grads, state, arrays)
  updates, state = tx.update(grads, state, model)
  assert updates["size"] is None
  np.testing.assert_array_equal(updates["kernel"], wanted["kernel"])
  assert int(sj.masks(state)["kernel"].sum()) == 4
  with pytest.raises(TypeError, match="params must be a tree of arrays"):
    tx.update({**grads, "size": jnp.ones(())}, state, model)
