"""The network that NeST's script times is the one that it trained."""

import jax
import numpy as np
import pytest

from scripts.reproduce import networks
from scripts.reproduce.nest import speed
from sparsejax import models


@pytest.mark.parametrize(
  ("name", "narrow", "wide"),
  [("mlp", (6, 4), (9, 5)), ("lenet5", (2, 3, 4), (4, 5, 8))],
)
def test_a_network_in_full_widths_computes_the_same(name, narrow, wide):
  module, shape = models.create(name, features=narrow), (28, 28, 1)
  images = jax.random.normal(jax.random.key(1), (3, *shape))
  params = jax.jit(module.init)(jax.random.key(0), images)["params"]
  params = jax.tree.map(lambda p: p + 0.1, params)  # biases too
  masks = jax.tree.map(lambda p: p > 0.1 if p.ndim > 1 else None, params)
  apply = jax.jit(lambda params, x: module.apply({"params": params}, x))
  network = networks.Network(name, module, apply, params, masks, shape)
  full, weights, live = speed.in_full_widths(network, wide)
  np.testing.assert_allclose(
    jax.jit(full)(weights, images), apply(params, images), atol=1e-4
  )
  assert sum(int(m.sum()) for m in jax.tree.leaves(live)) == sum(
    int(m.sum()) for m in jax.tree.leaves(masks)
  )
  widths = [x.shape[-1] for x in jax.tree.leaves(live)]
  assert widths == [*wide, 10]
