"""The start of a training: state, and params that are masked already."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx, struct
from flax.core import freeze

import sparsejax as sj
from sparsejax import lottery, supermasks

SGD = optax.sgd(0.1)
STATIC = functools.partial(sj.static_sparse, density=0.25)
FORWARD = functools.partial(sj.straight_through, density=0.25)


def _params():
  return {name: {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)} for name in "ab"}


def _live(params):
  return {name: int(layer["kernel"].sum()) for name, layer in params.items()}


@pytest.mark.parametrize(
  ("tx", "live"),
  [
    (STATIC(SGD), (4, 4)),
    (optax.MultiSteps(STATIC(SGD), 4), (4, 4)),
    (optax.chain(optax.clip(1.0), sj.packed_masks(STATIC(SGD))), (4, 4)),
    (sj.by_path(SGD, {"a/": STATIC}), (4, 16)),
    (sj.gradual_magnitude(SGD, 0.25, end_step=900), (16, 16)),  # dense at the start
    (FORWARD(SGD), (16, 16)),
    (sj.by_path(SGD, {"a/": STATIC, "b/": FORWARD}), (4, 16)),
    (supermasks.edge_popup(SGD, 0.25), (16, 16)),
  ],
)
def test_params_are_masked_unless_the_forward_pass_does_it(tx, live):
  params, state = sj.init(tx, before := _params())
  assert tuple(_live(params).values()) == live
  assert all(layer["bias"].sum() == 4 for layer in params.values())
  chex.assert_trees_all_equal(state, tx.init(before))
  kept = {id(x) for x in jax.tree.leaves(before)}
  assert not kept & {id(x) for x in jax.tree.leaves(params)}


def test_the_first_gradient_is_of_the_sparse_network():
  """Of the 16 weights of ones the loss sums the four that are live."""
  params, state = sj.init(STATIC(SGD), _params()["a"])
  loss = lambda p: jnp.square(jnp.sum(p["kernel"]))
  value, grads = jax.value_and_grad(loss)(params)
  assert float(value) == 16.0
  np.testing.assert_array_equal(grads["kernel"], jnp.full((4, 4), 8.0))
  assert int(state.budgets["kernel"]) == 4


def test_containers_stay():
  model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
  params, state = sj.init(STATIC(SGD), nnx.state(model, nnx.Param))
  assert type(params) is nnx.State
  nnx.update(model, params)
  assert int((model.kernel[...] != 0).sum()) == 4
  boxed = {"kernel": nn.Partitioned(jnp.ones((4, 4)), ("x", None))}
  params, state = jax.jit(functools.partial(sj.init, STATIC(SGD)))(boxed)
  assert params["kernel"].names == ("x", None)
  assert int(params["kernel"].value.sum()) == 4
  assert state.budgets["kernel"].shape == ()


def test_a_dense_optimizer_is_refused():
  with pytest.raises(ValueError, match="tx must be an optimizer made by sparsejax"):
    sj.init(SGD, _params())
  with pytest.raises(TypeError, match="tx must be an optax optimizer, got 3"):
    sj.init(3, _params())  # pyright: ignore[reportArgumentType]


def test_members_without_masks_of_their_own_are_masked_too():
  params = jax.tree.map(lambda x: jnp.stack([x, x]), _params())
  keys = jax.random.split(jax.random.key(0), 2)
  members = lottery.stack_members(STATIC(SGD), keys, params)
  live = jax.vmap(lambda p: jnp.stack([jnp.sum(p[k]["kernel"]) for k in "ab"]))
  np.testing.assert_array_equal(live(members.params), np.full((2, 2), 4.0))


class Layer(struct.PyTreeNode):
  """A node of flax's struct, with a field that is no child."""

  kernel: jax.Array
  bias: jax.Array | None
  name: str = struct.field(pytree_node=False, default="layer")


CORNERS = {
  "none": {"k": jnp.ones((4, 4)), "b": None, "sub": {"a": None}},
  "nones in a list": [jnp.ones((4, 4)), None, (None, jnp.ones(3))],
  "frozen": freeze({"layer": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}}),
  "struct": {"layer": Layer(jnp.ones((4, 4)), None)},
  "haiku": {"mlp/~/linear_0": {"w": jnp.ones((4, 4)), "b": jnp.ones(4)}},
  "masked": {"k": jnp.ones((4, 4)), "b": optax.MaskedNode()},
  "numpy": {"k": np.ones((4, 4), np.float32), "b": np.ones(4, np.float32)},
  "integer keys": {0: {"kernel": jnp.ones((4, 4))}, 1: {"bias": jnp.ones(4)}},
}


@pytest.mark.parametrize("name", list(CORNERS))
def test_corners_of_pytrees(name, tmp_path):
  """`sj.init` keeps the containers of JAX, flax, optax and haiku."""
  tree, tx = CORNERS[name], STATIC(SGD)
  params, state = sj.init(tx, tree)
  assert jax.tree.structure(params) == jax.tree.structure(tree)
  updates, after = tx.update(params, state, params)
  assert jax.tree.structure(after) == jax.tree.structure(state)
  end: Any = optax.apply_updates(params, updates)
  assert jax.tree.structure(end) == jax.tree.structure(tree)
  masks = sj.masks(after)
  [kernel] = [x for x in jax.tree.leaves(end) if x.ndim == 2]
  np.testing.assert_allclose(np.sort(kernel.ravel()), [0.0] * 12 + [0.9] * 4)
  chex.assert_trees_all_equal(sj.apply_masks(end, masks), end)
  sj.save_masks(tmp_path / "masks.npz", masks)
  loaded = sj.load_masks(tmp_path / "masks.npz", end)
  restored = sj.with_masks(after, loaded)
  chex.assert_trees_all_equal(restored, after)
