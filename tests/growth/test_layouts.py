"""The policies on several devices: the same masks as on one, where the kernels lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sparsejax as sj
from sparsejax import growth, models

DEVICES = 8


@pytest.fixture(scope="module")
def net():
  """A chain 16-32-24-3, each policy's inputs, and the round that uses all of them."""
  model = models.create("mlp", features=(32, 24), num_classes=8)
  x = jax.random.normal(jax.random.key(1), (64, 4, 4, 1))
  params = model.init(jax.random.key(0), x)["params"]
  chain = growth.layers(model, (4, 4, 1))
  masks = growth.seed(chain, 0.5, 0.4, jax.random.key(2))
  params = sj.apply_masks(params, masks)
  gradients = jax.tree.map(
    lambda p: jax.random.normal(jax.random.key(p.size), p.shape), params
  )
  bridging = jax.random.normal(jax.random.key(3), (16, 24))

  def round_(params, masks, gradients, bridging, key):
    masks = growth.grow_connections(masks, gradients, chain, 40)
    params, masks = growth.grow_neurons(
      params, masks, chain[0], chain[1], bridging, key, count=3
    )
    grown = masks
    pruned = growth.prune_connections(masks, params, chain, 100)
    return params, grown, pruned, growth.prune_units(masks, params, chain, (12, 9, 8))

  arguments = (params, masks, gradients, bridging, jax.random.key(4))
  return jax.jit(round_), arguments


def _specs(tree):
  """Kernels in parts along their outputs, the rest on every device."""
  return jax.tree.map(lambda v: P(None, "model") if v.ndim == 2 else P(), tree)


@pytest.mark.parametrize("axis", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_sharded_kernels_give_the_same_masks(net, axis):
  round_, arguments = net
  expected = round_(*arguments)
  mesh = jax.make_mesh((DEVICES,), ("model",), axis_types=(axis,))
  with jax.set_mesh(mesh):
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), _specs(arguments[:4]))
    found = round_(*jax.device_put(arguments[:4], places), arguments[4])
  for got, wanted in zip(
    jax.tree.leaves(found[1:]), jax.tree.leaves(expected[1:]), strict=True
  ):
    np.testing.assert_array_equal(got, wanted)
  # A mean over a sharded layer may be summed in another order.
  for got, wanted in zip(
    jax.tree.leaves(found[0]), jax.tree.leaves(expected[0]), strict=True
  ):
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_replicas_agree_under_pmap(net):
  round_, arguments = net
  expected = round_(*arguments)
  copies = jax.tree.map(lambda v: jnp.stack([v] * DEVICES), arguments)
  found = jax.pmap(round_)(*copies)
  for got, wanted in zip(
    jax.tree.leaves(found[1:]), jax.tree.leaves(expected[1:]), strict=True
  ):
    np.testing.assert_array_equal(got, np.broadcast_to(wanted, got.shape))


def test_gradients_of_sharded_batches_wake_the_same_connections(net):
  """Each replica sees its part of the images; the mean of all decides."""
  _, (params, masks, *_) = net
  model = models.create("mlp", features=(32, 24), num_classes=8)
  chain = growth.layers(model, (4, 4, 1))
  x = jax.random.normal(jax.random.key(5), (64, 4, 4, 1))
  y = jnp.arange(64) % 8

  def gradients(params, x, y):
    def loss(params):
      log_p = jax.nn.log_softmax(model.apply({"params": params}, x))
      return -jnp.mean(jnp.take_along_axis(log_p, y[:, None], 1))

    return jax.grad(loss)(params)

  def replica(params, x, y):
    mean = jax.lax.pmean(gradients(params, x, y), "data")
    return growth.grow_connections(masks, mean, chain, 25)

  split = lambda v: v.reshape(DEVICES, -1, *v.shape[1:])
  by_part = jax.pmap(replica, "data", in_axes=(None, 0, 0))(params, split(x), split(y))
  whole = growth.grow_connections(masks, jax.jit(gradients)(params, x, y), chain, 25)
  for got, wanted in zip(jax.tree.leaves(by_part), jax.tree.leaves(whole), strict=True):
    np.testing.assert_array_equal(got, np.broadcast_to(wanted, got.shape))
    assert got.sum() > 0
