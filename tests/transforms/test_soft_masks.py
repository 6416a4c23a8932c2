"""Soft masks: what `effective` does with them, and how everything else reads them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj

SGD = optax.sgd(1.0)


def halves(inner=SGD, **kwargs):
  """Keeps the larger half, at 3/4 before step 2 and at 1/4 from then on."""

  def soften(weights, state, axes):
    assert [a.shape for a in axes] == [(1, 4)]
    value = jnp.where(state.count < 2, 0.75, 0.25)
    return jax.tree.map(lambda w: jnp.full_like(w, value), weights)

  reselect = sj.reselect(sj.magnitude, 0.5)
  return sj.sparsify_forward(inner, reselect, 0.5, soften=soften, **kwargs)


def parameters(dtype="float32"):
  return {"kernel": jnp.array([[4, -3, -2, 1]], dtype), "bias": jnp.ones(4, dtype)}


def trained(tx, steps, dtype="float32"):
  params = parameters(dtype)
  update, zeros = jax.jit(tx.update), jax.tree.map(jnp.zeros_like, params)
  state = jax.jit(tx.init)(params)
  for _ in range(steps):
    _, state = update(zeros, state, params)
  return params, state


@functools.cache
def after(steps, dtype="float32"):
  """The params, which stay as they are, and the state after some steps."""
  return trained(halves(), steps, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_effective_multiplies_by_soft_masks_and_passes_gradients(dtype):
  params, state = after(1, dtype)
  soft = sj.soft_masks(state)
  assert soft["bias"] is None
  assert soft["kernel"].dtype == dtype
  np.testing.assert_array_equal(soft["kernel"], [[0.75, 0.75, 0, 0]])
  factor = jnp.array([[1, 2, 3, 4]], dtype)
  loss = lambda p: jnp.sum(sj.effective(p, state)["kernel"] * factor)
  value, grads = jax.value_and_grad(loss)(params)
  assert value == 3 - 4.5
  np.testing.assert_array_equal(grads["kernel"], factor)
  # Masked weights are +0, also negative and infinite ones.
  far = {**params, "kernel": params["kernel"].at[0, 3].set(-jnp.inf)}
  seen = sj.effective(far, state)["kernel"]
  np.testing.assert_array_equal(seen, [[3, -2.25, 0, 0]])
  assert not jnp.signbit(seen[0, 2:]).any()


def test_the_boolean_masks_say_what_is_live():
  params, state = after(1)
  masks = sj.masks(state)
  assert masks["kernel"].dtype == bool
  np.testing.assert_array_equal(masks["kernel"], [[True, True, False, False]])
  assert int(state.budgets["kernel"]) == 2
  sj.check_sparse(params, state)
  rows = [line.split() for line in sj.summary(params, masks).splitlines()]
  assert ["sparsified", "4", "2", "0.5000"] in rows
  served = sj.effective(params, state)
  np.testing.assert_array_equal(served["kernel"], [[3, -2.25, 0, 0]])
  np.testing.assert_array_equal(served["bias"], params["bias"])
  with pytest.raises(TypeError, match="masks must be bool, got float32 at 'kernel'"):
    sj.summary(params, sj.soft_masks(state))


def test_soft_masks_must_be_finite_and_not_negative():
  params, state = after(1)
  for wrong, n in (([[-0.5, jnp.nan, jnp.inf, 2]], 3), ([[1, 1, 0, -1]], 1)):
    broken = state._replace(soft_masks={"kernel": jnp.array(wrong), "bias": None})
    with pytest.raises(ValueError, match=f"at least 0, got {n} others for 'kernel'"):
      sj.check_sparse(params, broken)


def test_methods_without_soft_masks_give_their_masks():
  params = parameters()
  state = sj.straight_through(SGD, 0.5).init(params)
  assert state.soft_masks is None
  assert sj.soft_masks(state)["kernel"].dtype == bool
  with pytest.raises(ValueError, match="opt_state must come from an optimizer made by"):
    sj.soft_masks(SGD.init(params))


def test_new_masks_are_hard_until_the_next_update():
  params, state = after(1)
  new = {"kernel": jnp.array([[False, False, False, True]]), "bias": None}
  state = sj.with_masks(state, new)
  np.testing.assert_array_equal(sj.soft_masks(state)["kernel"], [[0, 0, 0, 1]])
  sj.check_sparse(params, state)
  _, state = jax.jit(halves().update)(
    jax.tree.map(jnp.zeros_like, params), state, params
  )
  np.testing.assert_array_equal(sj.soft_masks(state)["kernel"], [[0.25, 0.25, 0, 0]])


def test_wrappers_keep_soft_masks():
  params = parameters()
  packed = sj.packed_masks(halves())
  labels = {"kernel": "sparse", "bias": "dense"}
  split = optax.partition({"sparse": halves(), "dense": SGD}, labels)
  _, expected = after(2)
  for tx in (packed, split, optax.chain(optax.clip(1.0), halves())):
    _, state = trained(tx, 2)
    found = sj.soft_masks(state)["kernel"]
    np.testing.assert_array_equal(found, sj.soft_masks(expected)["kernel"])
  abstract = jax.eval_shape(halves().init, params)
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shapes(abstract) == shapes(halves().init(params))
  # optax finds the soft masks among the trees that are like the params.
  marked = optax.tree_map_params(halves(), lambda _: "like a param", abstract)
  assert marked.soft_masks["kernel"] == "like a param"
  assert optax.tree_map_params(packed, lambda _: 0, jax.eval_shape(packed.init, params))


def test_soften_must_be_a_function_of_three():
  make = lambda soften: sj.sparsify_forward(
    SGD, sj.reselect(sj.magnitude, 0.5), 0.5, soften=soften
  )
  with pytest.raises(TypeError, match=r"soften must be a function of \(weights, state"):
    make(3)
  with pytest.raises(TypeError, match="soften"):
    make(lambda weights: weights)
