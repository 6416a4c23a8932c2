import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparsejax as sj

pytest.importorskip("safetensors")


def equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


def linen():
  return nn.Dense(3).init(jax.random.key(0), jnp.ones((1, 2)))["params"]


@pytest.mark.parametrize(
  "params",
  [
    linen(),
    nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param),
    [jnp.arange(6.0).reshape(2, 3).T, jnp.ones(2, jnp.bfloat16), jnp.int32(3)],
  ],
  ids=["linen", "nnx", "list"],
)
def test_weights_and_masks_come_back(tmp_path, params):
  masks = jax.tree.map(lambda p: p > 0 if p.ndim == 2 else None, params)
  file = tmp_path / "net.safetensors"
  sj.save_safetensors(file, params, masks)
  weights, same = sj.load_safetensors(file, like=params)
  equal(weights, sj.apply_masks(params, masks))
  equal(same, masks)


def test_without_a_like_the_containers_are_nested_dicts(tmp_path):
  sj.save_safetensors(tmp_path / "a", [{"kernel": jnp.ones((2, 2))}, jnp.ones(2)])
  weights, masks = sj.load_safetensors(tmp_path / "a")
  equal(weights, {"0": {"kernel": jnp.ones((2, 2))}, "1": jnp.ones(2)})
  assert masks == {"0": {"kernel": None}, "1": None}


def test_other_libraries_read_the_names_shapes_and_masks(tmp_path):
  from safetensors import numpy

  params = {"layer": {"kernel": jnp.array([[1.0, 2.0, 3.0]])}}
  masks = {"layer": {"kernel": jnp.array([[True, False, True]])}}
  sj.save_safetensors(tmp_path / "a", params, masks)
  tensors = numpy.load_file(tmp_path / "a")
  assert sorted(tensors) == ["layer/kernel", "mask:layer/kernel"]
  np.testing.assert_array_equal(tensors["layer/kernel"], [[1, 0, 3]])
  np.testing.assert_array_equal(tensors["mask:layer/kernel"], [[True, False, True]])
