"""The four policies, against matrices worked out by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj
from sparsejax import growth, models
from sparsejax.growth import Layer

CHAIN = Layer(("a",), (3, 3), 3, 1), Layer(("b",), (3, 2), 3, 1)
# Unit 2 is dormant; of the others two connections are missing: a[0, 1] and b[1, 1].
MASKS = {
  "a": {"kernel": jnp.array([[1, 0, 0], [1, 1, 0], [1, 1, 0]], bool)},
  "b": {"kernel": jnp.array([[1, 1], [1, 0], [0, 0]], bool)},
}
PARAMS = {
  "a": {
    "kernel": jnp.array([[1.0, 0.0, 0.0], [-2.0, 0.5, 0.0], [3.0, -4.0, 0.0]]),
    "bias": jnp.array([0.1, 0.2, 0.3]),
  },
  "b": {
    "kernel": jnp.array([[0.2, -5.0], [6.0, 0.0], [0.0, 0.0]]),
    "bias": jnp.zeros(2),
  },
}


def _kernels(tree):
  return [np.asarray(tree[name]["kernel"]).astype(float).tolist() for name in "ab"]


def test_connections_grow_where_the_gradient_is_largest_between_live_units():
  gradients = {
    "a": {"kernel": jnp.full((3, 3), 9.0).at[0, 1].set(-0.5)},
    "b": {"kernel": jnp.full((3, 2), 9.0).at[1, 1].set(0.4)},
  }
  one = growth.grow_connections(MASKS, gradients, CHAIN, 1)
  # The nines are live already or lead to the dormant unit.
  assert _kernels(one) == [
    [[1, 1, 0], [1, 1, 0], [1, 1, 0]],
    [[1, 1], [1, 0], [0, 0]],
  ]
  all_ = growth.grow_connections(MASKS, gradients, CHAIN, 99)
  assert _kernels(all_)[1] == [[1, 1], [1, 1], [0, 0]]
  second = growth.grow_connections(MASKS, gradients, CHAIN, [0, 1])
  assert _kernels(second) == [_kernels(MASKS)[0], [[1, 1], [1, 1], [0, 0]]]
  with pytest.raises(ValueError, match="one number per layer, 2, got 1"):
    growth.grow_connections(MASKS, gradients, CHAIN, [1])


def test_neurons_are_wired_as_the_paper_says():
  lower, upper = CHAIN
  gradient = jnp.array([[4.0, 0.0], [0.0, -9.0], [0.0, 0.1]])  # two pairs of six
  grow = lambda key: growth.grow_neurons(
    PARAMS, MASKS, lower, upper, gradient, key, beta=1 / 3, alpha=0.5
  )
  seen = set()
  for i in range(8):
    params, masks = grow(jax.random.key(i))
    # in = (-e1 2, +e2 3, 0), out = (e1 2, e2 3); live means: a 2.1, b 11.2 / 3.
    into = np.asarray(params["a"]["kernel"])[:, 2]
    out = np.asarray(params["b"]["kernel"])[2]
    np.testing.assert_allclose(np.abs(into), [0.84, 1.26, 0.0], rtol=1e-6)
    strength = 0.5 * (11.2 / 3) / 2.5
    np.testing.assert_allclose(np.abs(out), [2 * strength, 3 * strength], rtol=1e-6)
    assert into[0] * out[0] < 0 < into[1] * out[1]  # against G, whatever the sign
    assert _kernels(masks)[0] == [[1, 0, 1], [1, 1, 1], [1, 1, 0]]
    assert _kernels(masks)[1] == [[1, 1], [1, 0], [1, 1]]
    assert params["a"]["bias"][2] == 0
    np.testing.assert_array_equal(
      params["a"]["kernel"][:, :2], PARAMS["a"]["kernel"][:, :2]
    )
    seen.add((float(np.sign(out[0])), float(np.sign(out[1]))))
  assert len(seen) > 2
  none, same = growth.grow_neurons(
    params, masks, lower, upper, gradient, jax.random.key(9), beta=1 / 3
  )
  np.testing.assert_array_equal(none["a"]["kernel"], params["a"]["kernel"])
  assert _kernels(same) == _kernels(masks)


@pytest.fixture(scope="module")
def small():
  model = models.create("mlp", features=(6, 5), num_classes=3)
  x = jax.random.normal(jax.random.key(1), (64, 2, 2, 1))
  y = jnp.argmax(x.reshape(64, 4)[:, :3] ** 2, axis=1)
  variables = model.init(jax.random.key(0), x)
  chain = growth.layers(model, (2, 2, 1))
  masks = growth.seed(chain, 0.67, 0.9, jax.random.key(2))
  return model, sj.apply_masks(variables["params"], masks), masks, chain, x, y


def _loss(model, y):
  def loss(params, x, apply=model.apply):
    logits = apply({"params": params}, x)
    log_p = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(log_p, y[:, None], 1))

  return loss


def test_bridging_gradient_is_the_mean_of_activation_times_error(small):
  model, params, _, chain, x, y = small
  lower, upper = chain[1], chain[2]
  bridged = growth.bridge(model.apply, lower, upper)
  loss = _loss(model, y)
  found = jax.grad(
    lambda b: loss(params, x, lambda variables, x: bridged(b, variables, x))
  )(jnp.zeros((6, 3)))
  h = jax.nn.relu(
    x.reshape(64, 4) @ params["dense1"]["kernel"] + params["dense1"]["bias"][None]
  )
  logits = model.apply({"params": params}, x)
  error = jax.nn.softmax(logits) - jax.nn.one_hot(y, 3)
  np.testing.assert_allclose(found, h.T @ error / 64, rtol=1e-4, atol=1e-6)
  conv = Layer(("c",), (3, 3, 1, 2), 1, 4)
  with pytest.raises(ValueError, match="lower must be a dense layer"):
    growth.bridge(model.apply, conv, upper)


def test_new_neurons_lower_the_loss_for_either_sign(small):
  model, params, masks, chain, x, y = small
  lower, upper = chain[0], chain[1]
  loss = jax.jit(_loss(model, y))
  bridged = growth.bridge(model.apply, lower, upper)
  gradient = jax.grad(
    lambda b: _loss(model, y)(params, x, lambda v, x: bridged(b, v, x))
  )(jnp.zeros((4, 5)))
  before = loss(params, x)
  # A pair alone, so that there is one sign; a step that is small against the curvature.
  changes = {}
  for i in range(6):
    grown, new = growth.grow_neurons(
      params, masks, lower, upper, gradient, jax.random.key(i), beta=0.05, alpha=0.05
    )
    born = np.flatnonzero(
      np.asarray(growth.live_units(new, chain)[0])
      & ~np.asarray(growth.live_units(masks, chain)[0])
    )
    assert len(born) == 1
    sign = float(jnp.sign(jnp.sum(grown["dense2"]["kernel"][born[0]])))
    changes[sign] = float(loss(grown, x) - before)
  assert set(changes) == {-1.0, 1.0}
  assert all(change < 0 for change in changes.values())
  wrong = growth.grow_neurons(
    params, masks, lower, upper, -gradient, jax.random.key(0), beta=0.05, alpha=0.05
  )[0]
  assert loss(wrong, x) > before


def test_feature_map_is_the_best_of_the_draws():
  chain = (
    Layer(("c",), (2, 2, 1, 3), 1, 9),
    Layer(("d",), (2, 2, 3, 2), 3, 4),
    Layer(("e",), (8, 3), 2, 1),
  )
  keys = jax.random.split(jax.random.key(0), 4)
  params = {
    layer.path[0]: {
      "kernel": jax.random.normal(k, layer.shape),
      "bias": jnp.ones(layer.features),
    }
    for layer, k in zip(chain, keys, strict=False)
  }
  masks = {n: {"kernel": jnp.ones_like(p["kernel"], bool)} for n, p in params.items()}
  masks["c"]["kernel"] = masks["c"]["kernel"].at[..., 2].set(False)
  masks["d"]["kernel"] = masks["d"]["kernel"].at[..., 2, :].set(False)
  params = sj.apply_masks(params, masks)
  x = jax.random.normal(keys[3], (4, 4, 4, 1))

  def loss(params):
    h = x
    for name in "cd":
      h = jax.lax.conv_general_dilated(
        h,
        params[name]["kernel"],
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
      )
    return jnp.mean((h.reshape(4, -1) @ params["e"]["kernel"] - 1) ** 2)

  @jax.jit
  def grow(params, masks, key):
    return growth.grow_feature_map(
      loss, params, masks, chain, 0, key, candidates=8, density=0.5
    )

  grown, new, losses = grow(params, masks, keys[0])
  assert losses.shape == (8,)
  assert float(loss(grown)) == pytest.approx(float(losses.min()), rel=1e-5)
  assert losses.min() < losses.max()
  born = np.asarray(new["c"]["kernel"] & ~masks["c"]["kernel"])
  assert 0 < born.sum() <= 4
  assert not born[..., :2].any()
  leads = np.asarray(new["d"]["kernel"] & ~masks["d"]["kernel"])
  assert 0 < leads.sum() <= 8
  assert not leads[..., :2, :].any()
  for name in "cd":
    old = np.asarray(masks[name]["kernel"])
    np.testing.assert_array_equal(
      np.asarray(grown[name]["kernel"])[old], np.asarray(params[name]["kernel"])[old]
    )
  full, still, _ = grow(grown, new, keys[1])  # no dormant map is left
  np.testing.assert_array_equal(full["c"]["kernel"], grown["c"]["kernel"])
  assert bool(jnp.all(still["d"]["kernel"] == new["d"]["kernel"]))
  with pytest.raises(ValueError, match="index must be that of a convolution"):
    growth.grow_feature_map(loss, params, masks, chain, 2, keys[0])


def test_pruning_takes_the_smallest_and_what_leads_nowhere():
  # Of |w| = 1, 2, .5, 3, 4 and .2, 5, 6 the four largest stay.
  masks = growth.prune_connections(MASKS, PARAMS, CHAIN, 4)
  assert _kernels(masks) == [
    [[0, 0, 0], [0, 0, 0], [1, 1, 0]],
    [[0, 1], [1, 0], [0, 0]],
  ]
  # A unit that loses its outputs loses its inputs too.
  masks = growth.prune_connections(MASKS, PARAMS, CHAIN, [4, 1])
  assert _kernels(masks) == [
    [[0, 0, 0], [0, 0, 0], [0, 1, 0]],
    [[0, 0], [1, 0], [0, 0]],
  ]
  # Weights of the first layer that are used at nine positions must be thrice as large.
  often = CHAIN[0]._replace(uses=9), CHAIN[1]
  masks = growth.prune_connections(MASKS, PARAMS, often, 3, powers=0.5)
  assert _kernels(masks) == [
    [[0, 0, 0], [0, 0, 0], [0, 1, 0]],
    [[0, 0], [1, 0], [0, 0]],
  ]


def test_units_go_whole():
  masks = growth.prune_units(MASKS, PARAMS, CHAIN, [3, 1])
  # |in| |out|: sqrt(14) 5.0 < sqrt(16.25) 6.
  assert _kernels(masks) == [
    [[0, 0, 0], [0, 1, 0], [0, 1, 0]],
    [[0, 0], [1, 0], [0, 0]],
  ]
  masks = growth.prune_units(MASKS, PARAMS, CHAIN, [1, 2])
  assert _kernels(masks)[0] == [[0, 0, 0], [0, 0, 0], [1, 1, 0]]
  with pytest.raises(ValueError, match="each hidden layer, 2; got 1"):
    growth.prune_units(MASKS, PARAMS, CHAIN, [1])


def test_sizes_count_biases_of_live_units():
  sizes = growth.size(MASKS, CHAIN)
  assert [int(n) for n in sizes] == [8, 12, 8]  # two hidden units and two outputs
  lenet = growth.layers(models.LeNet5(), (28, 28, 1))
  every = {layer.path[0]: {"kernel": jnp.ones(layer.shape, bool)} for layer in lenet}
  sizes = growth.size(every, lenet)
  assert int(sizes.parameters) == 431_080
  assert 2 * int(sizes.multiply_adds) == 4_586_000


def test_layers_of_a_residual_net_are_refused():
  class Residual(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = x.reshape(x.shape[0], -1)
      return nn.Dense(3)(jnp.concatenate([nn.Dense(3)(x), x], axis=1))

  with pytest.raises(ValueError, match="chain of layers"):
    growth.layers(Residual(), (2, 2, 1))


def test_a_layer_knows_its_normalization():
  class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x):
      for i, features in enumerate((4, 6), 1):
        x = nn.Conv(features, (3, 3), name=f"conv{i}")(x)
        x = nn.BatchNorm(use_running_average=True, name=f"norm{i}")(x)
        x = nn.relu(x)
      return nn.Dense(3, name="dense")(x.reshape(x.shape[0], -1))

  found = growth.layers(Normalized(), (4, 4, 1))
  assert [layer.norm for layer in found] == [("norm1",), ("norm2",), None]
  assert found[1].features == found[2].inputs == 6


def test_seeds_connect_every_unit_with_exact_density():
  chain = growth.layers(models.create("mlp", features=(30, 10)), (8, 8, 1))
  masks = growth.seed(chain, 0.4, 0.25, jax.random.key(3))
  units = growth.live_units(masks, chain)
  assert [int(u.sum()) for u in units] == [12, 4, 10]
  assert [int(m["kernel"].sum()) for m in masks.values()] == [192, 12, 10]
  with pytest.raises(ValueError, match="a connection to every unit, 12 in 'dense2"):
    growth.seed(chain, 0.4, 0.1, jax.random.key(3))
  with pytest.raises(ValueError, match="width_ratio must be in"):
    growth.seed(chain, 1.4, 0.1, jax.random.key(3))


@pytest.mark.slow
def test_seeds_of_convolutions_connect_every_map():
  conv = growth.layers(models.LeNet5(features=(4, 8, 20)), (16, 16, 1))
  masks = growth.seed(conv, 0.5, 0.3, jax.random.key(3))
  units = growth.live_units(masks, conv)
  assert [int(u.sum()) for u in units] == [2, 4, 10, 10]
  assert int(masks["dense1"]["kernel"].sum()) == round(0.3 * 4 * 10)
