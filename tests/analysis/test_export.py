"""Compact networks in files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.analysis import _export as export
from sparsejax.analysis.compaction import compact


@pytest.fixture(scope="module")
def small():
  rng = np.random.default_rng(0)
  draw = lambda *s: jnp.asarray(rng.normal(size=s).astype(np.float32))
  params = {"a": draw(6, 5), "b": draw(5), "c": draw(5, 3)}
  masks = {"a": rng.random((6, 5)) < 0.3, "b": None, "c": rng.random((5, 3)) < 0.4}
  mlp = lambda p, x: jnp.tanh(x @ p["a"] + p["b"][None]) @ p["c"]
  return compact(mlp, params, masks, jnp.ones((1, 6)))


def test_artifact(small):
  x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32))
  want = small.apply(small.params, x)
  exported = export.artifact(small, x, platforms=("cpu",))
  np.testing.assert_allclose(jax.jit(exported.call)(x), want, atol=1e-6)
  pytest.importorskip("flatbuffers")
  again = jax.export.deserialize(exported.serialize())
  np.testing.assert_allclose(again.call(x), want, atol=1e-6)


def test_safetensors(small, tmp_path):
  pytest.importorskip("safetensors")
  export.save_safetensors(tmp_path / "net.safetensors", small)
  params, masks = export.load_safetensors(tmp_path / "net.safetensors")
  assert params.keys() == small.params.keys()
  for name, array in params.items():
    np.testing.assert_array_equal(array, small.params[name])
  assert masks.keys() == small.shapes.keys()
  for name, mask in masks.items():
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, small.params[name] != 0)
