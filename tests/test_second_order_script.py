"""The networks and data of the second-order results are those of the papers."""

import jax
import jax.numpy as jnp
import numpy as np

from scripts.reproduce.second_order import lenet1, small_nets


def test_published_rows(tmp_path):
  text = " 1 1 1 1 1 3 1 data_5\n 0 3 2 2 3 4 2 data_432\n"
  (tmp_path / "monks-1.train").write_text(text)
  problem = small_nets.published_rows(1, tmp_path)
  assert problem.train_labels.tolist() == [True, False]
  assert problem.train_inputs.shape == (2, 17)
  # One-hot: attributes of 3, 3, 2, 3, 4 and 2 values.
  first, second = (row.nonzero()[0].tolist() for row in problem.train_inputs)
  assert first == [0, 3, 6, 8, 13, 15]
  assert second == [2, 4, 7, 10, 14, 16]
  assert problem.inputs.shape == (432, 17)


def test_lenet1_has_the_parameters_and_connections_of_the_paper():
  params, exists = lenet1.initialize(jax.random.key(0))
  free = {
    layer: sum(int(m.sum()) for m in jax.tree.leaves(masks))
    for layer, masks in exists.items()
  }
  assert sum(free.values()) == lenet1.FREE == 2578
  # A map shares its parameters; a pooled one has four inputs at one coefficient.
  places = {"conv1": 24**2, "conv2": 8**2, "dense": 1}
  connections = sum(n * free[layer] for layer, n in places.items())
  connections += 12**2 * 4 * 5 + 4**2 * 12 * 5
  assert connections == 98_442
  assert not np.any(params["conv2"]["kernel"][~exists["conv2"]["kernel"]])


def test_lenet1_convolves():
  params, _ = lenet1.initialize(jax.random.key(0))
  # Biases are initially 0 and coefficients 1, which would hide them.
  params = jax.tree.map(
    lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params
  )
  images = jax.random.normal(jax.random.key(1), (3, 28, 28))
  x = images[..., None]
  for i in "12":
    kernel, pool = params[f"conv{i}"]["kernel"], params[f"pool{i}"]
    x = jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = lenet1.squash(x + params[f"conv{i}"]["bias"][None, None, None])
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
    x = x * pool["scale"][None, None, None] + pool["bias"][None, None, None]
    x = lenet1.squash(x)
  # The last layer takes maps first.
  x = jnp.moveaxis(x, 3, 1).reshape(3, -1) @ params["dense"]["kernel"]
  x += params["dense"]["bias"][None]
  found = lenet1.apply(params, images)
  np.testing.assert_allclose(found, lenet1.squash(x), atol=1e-5)


def test_a_network_is_pruned_with_and_without_retraining():
  key = jax.random.key(0)
  images = jax.random.normal(key, (100, 28, 28))
  data = images, 2 * jax.nn.one_hot(jnp.arange(100) % 10, 10) - 1
  with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
    found = lenet1.one_network(0, data, data, epochs=1, retrain_epochs=2)
  cases = {case for case, _ in found}
  assert len(cases) == 1 + 4 * len(lenet1.LIVE)
  assert lenet1.LIVE[-1] == 258
  assert all(np.isfinite(v) for v in found.values())
  for live in lenet1.LIVE:
    case, metric = f"lenet1/parameters={live}/obd", "train_mse_decibels"
    assert found[f"{case}/retrained", metric] < found[case, metric]
