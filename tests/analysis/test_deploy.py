"""Deployed networks: the same outputs, the fastest formats, a file that runs alone."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj
from sparsejax import analysis
from sparsejax.analysis.deployment import _deploy

LOAD = """
import sys
sys.modules["sparsejax"] = None
import jax.experimental.sparse  # registers the compiled CSR product
import numpy as np
from jax import export
net = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
np.save(sys.argv[2], net.call(np.load(sys.argv[3])))
"""


def draw(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def network(params, x):
  """Products with the kernel first and last, and with a kernel of three axes."""
  x = x.reshape(len(x), -1)
  x = jax.nn.relu(x @ params["a"] + params["bias"][None])
  x = jnp.einsum("hdi,ni->nhd", params["heads"], x)
  x = jnp.tanh(jnp.einsum("nhd,hdo->no", x, params["out"]))
  return params["last"] @ x.T


PARAMS = {
  "a": draw(0, 36, 64),
  "bias": draw(1, 64),
  "heads": draw(2, 4, 16, 64),
  "out": draw(3, 4, 16, 32),
  "last": draw(4, 5, 32),
}
KERNELS = ["a", "heads", "out", "last"]


def masks(density):
  rng = np.random.default_rng(5)
  draws = {k: rng.random(p.shape) < density for k, p in PARAMS.items()}
  return {k: jnp.asarray(m) if k in KERNELS else None for k, m in draws.items()}


def prefer(monkeypatch, *formats):
  """Makes the first of some formats, and of networks, the fastest by the clock."""

  def seconds(calls, like, rounds):
    for call in calls.values():
      jax.block_until_ready(call(jnp.ones(like.shape, like.dtype)))
    order = [*formats, *calls]
    return {name: 1.0 + order.index(name) for name in calls}

  monkeypatch.setattr(_deploy, "_medians", seconds)


@pytest.mark.parametrize("format_", ["csr", "blocks of 32"])
def test_outputs_are_those_of_the_masked_network(monkeypatch, format_):
  prefer(monkeypatch, format_, "deployed")
  x, kept = draw(6, 8, 6, 6), masks(0.3)
  if format_ != "csr":
    live = jnp.asarray(np.kron(np.eye(2), np.ones((32, 32))) > 0)
    kept["heads"] = live.reshape(64, 4, 16).transpose(1, 2, 0)
    kept["a"] = kept["out"] = kept["last"] = None
  net = analysis.deploy(network, PARAMS, kept, x)
  assert net.choice == "deployed"
  assert [layer.name for layer in net.layers] == KERNELS
  assert format_ in [layer.choice for layer in net.layers]
  for layer in net.layers:
    if layer.seconds:
      assert layer.choice == min(layer.seconds, key=layer.seconds.__getitem__)
  masked = sj.apply_masks(PARAMS, kept)
  for inputs in (x, draw(7, 3, 6, 6)):  # and another batch size than the example's
    want = network(masked, inputs)
    np.testing.assert_allclose(net.apply(inputs), want, rtol=1e-4, atol=1e-4)
  assert format_ in net.table()


def test_the_masked_network_stays_where_nothing_is_faster(monkeypatch):
  prefer(monkeypatch, "dense", "masked")
  net = analysis.deploy(network, PARAMS, masks(0.3), draw(6, 8, 6, 6))
  assert net.choice == "masked"
  assert {layer.choice for layer in net.layers} == {"dense"}
  assert "deployed" not in net.seconds


def test_a_network_that_cannot_be_compacted_is_deployed_all_the_same():
  ordered = lambda p, x: jnp.sort(x @ p, axis=-1)
  net = analysis.deploy(ordered, draw(0, 8, 8), None, draw(1, 2, 8), rounds=1)
  assert "sort" in str(net.not_compact)
  assert list(net.seconds) == ["masked"]
  assert [layer.shape for layer in net.layers] == [(8, 8)]


def test_the_file_runs_without_this_library(monkeypatch, tmp_path):
  pytest.importorskip("flatbuffers")
  prefer(monkeypatch, "csr", "deployed")
  x = draw(6, 8, 6, 6)
  net = analysis.deploy(network, PARAMS, masks(0.1), x)
  net.save(tmp_path / "net.bin")
  np.save(tmp_path / "x.npy", x)
  command = [sys.executable, "-c", LOAD, "net.bin", "y.npy", "x.npy"]
  subprocess.run(command, cwd=tmp_path, check=True)
  np.testing.assert_allclose(np.load(tmp_path / "y.npy"), net.apply(x), atol=1e-5)


def test_products_of_two_dtypes_stay_dense():
  rng = np.random.default_rng(0)
  blocks = np.kron(rng.random((4, 4)) < 0.1, np.ones((64, 64)))
  params = jnp.asarray(rng.normal(size=(256, 256)) * blocks, jnp.float32)
  images = jnp.ones((64, 256), jnp.bfloat16)
  with jax.numpy_dtype_promotion("standard"):
    net = analysis.deploy(lambda p, x: x @ p, params, None, images, rounds=1)
    assert net.layers[0].choice == "dense"


def test_products_that_sum_to_a_wider_dtype_stay_dense():
  kernel = jnp.eye(64, dtype=jnp.bfloat16)
  kernel = jnp.kron(jnp.eye(4, dtype=jnp.bfloat16), kernel)  # sparse in blocks

  def wide(params, x):
    x = x.astype(jnp.bfloat16)
    return jnp.matmul(x, params["a"], preferred_element_type=jnp.float32)

  net = analysis.deploy(wide, {"a": kernel}, None, jnp.ones((8, 256)), rounds=1)
  assert [(layer.choice, layer.seconds) for layer in net.layers] == [("dense", {})]
