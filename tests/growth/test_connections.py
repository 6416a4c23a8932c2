"""Growth reads from the traced program which weights are connected."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import growth


class Residual(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Dense(16, name="stem")(x.reshape(x.shape[0], -1))
    h = nn.relu(nn.Dense(16, name="up")(x))
    return nn.Dense(4, name="head")(x + nn.Dense(16, name="down")(h))


class Gate(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Dense(16)(x.reshape(x.shape[0], -1))
    return nn.Dense(4)(x * nn.sigmoid(nn.Dense(16)(x)))


class Branches(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Dense(16)(x.reshape(x.shape[0], -1))
    return nn.Dense(4)(nn.relu(nn.Dense(16)(x)) + nn.tanh(nn.Dense(16)(x)))


class Concatenated(nn.Module):
  """Twice as many units, as a dense layer of two positions would take them."""

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(16)(x.reshape(x.shape[0], -1))
    h = nn.Dense(16)(nn.relu(x))
    return nn.Dense(4)(jnp.concatenate([h, x], axis=1))


class Shared(nn.Module):
  @nn.compact
  def __call__(self, x):
    layer = nn.Dense(16)
    return nn.Dense(4)(layer(nn.relu(layer(x.reshape(x.shape[0], -1)))))


class Normalized(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Dense(16)(x.reshape(x.shape[0], -1))
    return nn.Dense(4)(nn.LayerNorm()(x))


class Narrow(nn.Module):
  """A skip around a layer of one unit."""

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(2)(x.reshape(x.shape[0], -1))
    h = nn.Dense(2)(nn.relu(nn.Dense(1)(x)))
    return nn.Dense(2)(x + h)


@pytest.mark.parametrize(
  "model", [Residual, Gate, Branches, Concatenated, Shared, Normalized, Narrow]
)
def test_programs_that_are_no_chain_are_refused(model):
  shape = (4, 4, 1)
  with pytest.raises(ValueError, match="model must be a chain of layers"):
    growth.layers(model(), shape)


class Chain(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(3, (3, 3))(x))
    x = nn.BatchNorm(use_running_average=True)(x)
    x = nn.max_pool(nn.relu(nn.Conv(9, (3, 3))(x)), (2, 2), (2, 2))
    x = nn.relu(nn.Dense(1)(x.reshape(x.shape[0], -1)))
    return nn.Dense(2)(x)


def test_chains_are_taken():
  chain = growth.layers(Chain(), (8, 8, 1))
  assert [layer.features for layer in chain] == [3, 9, 1, 2]
  assert [layer.inputs for layer in chain] == [1, 3, 9, 1]


def test_a_skip_keeps_the_units_alive_that_a_branch_no_longer_feeds():
  model, x = Residual(), jax.random.normal(jax.random.key(0), (8, 4, 4, 1))
  params = model.init(jax.random.key(1), x)["params"]
  apply = lambda params, x: model.apply({"params": params}, x)
  masks = {k: {"kernel": jnp.ones(v["kernel"].shape, bool)} for k, v in params.items()}
  masks["down"]["kernel"] = masks["down"]["kernel"].at[:, :4].set(False)
  masks["up"]["kernel"] = masks["up"]["kernel"].at[:, 5].set(False)  # an empty unit
  masks = {k: {**m, "bias": None} for k, m in masks.items()}
  kept = growth.remove_unreachable(masks, apply, params, x)
  counts = {k: int(m["kernel"].sum()) for k, m in kept.items()}
  # A row of `down` leaves with the empty unit: 12 of its 16 columns are live.
  assert counts == {"stem": 256, "up": 240, "down": 180, "head": 64}
  assert kept["head"]["bias"] is None
  cut = lambda masks: jax.tree.map(
    lambda p, m: p if m is None else jnp.where(m, p, 0), params, {**masks}
  )
  before, after = (
    apply({k: {**params[k], "kernel": v["kernel"]} for k, v in cut(m).items()}, x)
    for m in (masks, kept)
  )
  # Only the constant of the empty unit is gone: relu(0) of zero biases.
  np.testing.assert_allclose(after, before, atol=1e-5)
