"""Which leaves are chosen, and how masks are matched with params."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax.core._tree import align, choose, matches, selected

TREE = {
  "dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
  "embed": {"embedding": jnp.ones((5, 2))},
  "layers": {"kernel": jnp.ones((4, 2, 2)), "bias": jnp.ones((4, 2))},
  "LayerNorm_0": {"scale": jnp.ones((4, 2))},
  "step": jnp.zeros((2, 2), jnp.int32),
}


def paths_chosen(flags, tree=TREE):
  return set(jax.tree.leaves(choose(_paths(tree), flags)))


def _paths(tree):
  return jax.tree_util.tree_map_with_path(
    lambda p, _: jax.tree_util.keystr(p, simple=True, separator="/"), tree
  )


def test_default_takes_kernels():
  assert paths_chosen(selected(TREE, None)) == {"dense/kernel", "layers/kernel"}


def test_regex_function_and_tree():
  assert paths_chosen(selected(TREE, "dense/k|embedding")) == {
    "dense/kernel",
    "embed/embedding",
  }
  big = selected(TREE, lambda path, leaf: leaf.size > 9 and "bias" not in path)
  assert paths_chosen(big) == {"embed/embedding", "layers/kernel"}
  tree = jax.tree.map(lambda x: x.ndim == 1, TREE)
  assert paths_chosen(selected(TREE, tree)) == {"dense/bias"}
  prefix = {k: k == "layers" for k in TREE}
  assert paths_chosen(selected(TREE, prefix)) == {"layers/kernel", "layers/bias"}


def test_containers():
  @jax.tree_util.register_dataclass
  @dataclasses.dataclass
  class Net:
    kernel: jax.Array
    bias: jax.Array

  net = Net(jnp.ones((2, 2)), jnp.ones(2))
  assert matches(net, None) == [True, False]
  assert matches((net, [jnp.ones((1, 1))]), None) == [True, False, True]
  assert matches(jnp.ones((2, 2)), None) == [True]
  state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
  assert matches(state, "kernel$") == [False, True]


def test_align_strict_and_by_path():
  params = {"a": jnp.ones((2, 2)), "b": jnp.ones(2)}
  masks = {"a": jnp.ones((2, 2), bool), "b": None}
  assert [m is None for m in align(params, masks)] == [False, True]
  state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
  pure = {"kernel": jnp.ones((2, 3), bool), "bias": None}
  assert [m is None for m in align(state, pure, strict=False)] == [True, False]


@pytest.mark.parametrize(
  ("where", "error", "message"),
  [
    ("no such leaf", ValueError, "where must select at least one leaf.*no such leaf"),
    ("(", ValueError, "where must be a valid regex"),
    (lambda path, leaf: False, ValueError, "where must select at least one leaf"),
    ("step", TypeError, "where must select floating-point leaves, got int32 at 'step'"),
    (3, TypeError, "where must be a tree of bools, a regex or a function.*got 3"),
    ({"dense": True}, ValueError, "where must be a tree that fits params"),
  ],
)
def test_bad_choice(where, error, message):
  with pytest.raises(error, match=message):
    selected(TREE, where)


def test_bad_trees():
  with pytest.raises(ValueError, match="params must contain at least one array"):
    selected({}, None)
  with pytest.raises(ValueError, match=r"weights, got shape \(0, 2\) at 'a'"):
    selected({"a": jnp.ones((0, 2))}, None)
  masks = {"a": jnp.ones((2, 2), bool)}
  with pytest.raises(
    ValueError, match="params must have the structure they had at init"
  ):
    align({"a": jnp.ones((2, 2)), "b": jnp.ones(2)}, masks)
  with pytest.raises(ValueError, match=r"'a' has shape \(3, 2\), its mask \(2, 2\)"):
    align({"a": jnp.ones((3, 2))}, masks)
  with pytest.raises(ValueError, match="'a' missing"):
    align({"c": jnp.ones((3, 2))}, masks, strict=False)


def test_a_flat_vector_is_told_of_ranks_and_where():
  """Evolution strategies hand all weights over as one vector, which has no kernels."""
  vector = jnp.ones(12)
  with pytest.raises(ValueError, match=r"rank 2 or more.*shape \(12,\).*where="):
    sj.rigl(optax.sgd(0.1), 0.5).init(vector)
  tx = sj.rigl(optax.sgd(0.1), 0.5, where=lambda path, leaf: True)
  assert int(sj.masks(tx.init(vector)).sum()) == 6


def test_a_module_with_functions_is_told_of_its_arrays():
  model = eqx.nn.MLP(4, 4, 8, 1, key=jax.random.key(0))
  tx = sj.static_sparse(optax.sgd(0.1), 0.5)
  with pytest.raises(TypeError, match=r"eqx\.filter\(model, eqx\.is_inexact_array\)"):
    tx.init(model)
  params, state = sj.init(tx, eqx.filter(model, eqx.is_inexact_array))
  grads = jax.tree.map(jnp.ones_like, params)
  updates, state = tx.update(grads, state, params)
  end = eqx.apply_updates(params, updates)
  for layer, mask in zip(end.layers, sj.masks(state).layers, strict=True):
    assert not np.any(np.asarray(layer.weight)[~np.asarray(mask.weight)])
    assert int(mask.weight.sum()) == layer.weight.size // 2
