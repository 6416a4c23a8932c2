"""Groups of layers with their own methods and densities."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparsejax as sj


class Net(nnx.Module):
  def __init__(self):
    rngs = nnx.Rngs(0)
    self.body = nnx.Linear(4, 4, rngs=rngs)
    self.head = nnx.Linear(4, 4, rngs=rngs)
    self.stem = nnx.Linear(4, 4, rngs=rngs)


@pytest.mark.parametrize("container", ["dict", "nnx"])
def test_groups_have_their_own_methods_and_densities(container):
  params = nnx.state(Net(), nnx.Param)
  if container == "dict":
    params = nnx.to_pure_dict(params)
  tx = sj.by_path(
    optax.sgd(0.1),
    {
      "body": functools.partial(
        sj.rigl, density=0.25, update_every=2, drop_fraction=0.9
      ),
      "head": sj.static_sparse(optax.sgd(1.0), density=0.5),
    },
  )
  state = tx.init(params)
  # Dead weights of the largest gradients are not those that are live at the start.
  grads = jax.tree.map(lambda p: 1 - p, params)
  update, masks = jax.jit(tx.update), []
  for flag in (None, None, False):
    extra = {} if flag is None else {"update_masks": jnp.asarray(flag)}
    before = params
    updates, state = update(grads, state, params, **extra)
    params = optax.apply_updates(params, updates)
    masks.append(sj.masks(state))
  found = masks[-1]
  assert jax.tree.leaves(found["stem"]) == []
  assert [int(m.sum()) for m in jax.tree.leaves(found["body"])] == [4]
  assert [int(m.sum()) for m in jax.tree.leaves(found["head"])] == [8]
  same = lambda x, y: all(
    bool((a == b).all())
    for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
  )
  assert not same(masks[0]["body"], masks[1]["body"])
  assert same(masks[1]["body"], masks[2]["body"])
  assert same(masks[0]["head"], masks[2]["head"])
  # Each group is stepped by its own optimizer, biases and the rest by theirs.
  stem, head = "stem", "head"
  for name, rate in ((stem, 0.1), (head, 1.0)):
    step = jax.tree.map(lambda n, b: n - b, params[name]["bias"], before[name]["bias"])
    [step], [g] = jax.tree.leaves(step), jax.tree.leaves(grads[name]["bias"])
    np.testing.assert_allclose(step, -rate * g, rtol=1e-5)
  chex.assert_trees_all_equal(sj.apply_masks(params, found), params)
