"""Class specialization and the article's estimates, by tables worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import models
from sparsejax.analysis import _specialization as specialization
from sparsejax.analysis.costs import estimated_speedups


def test_contributions_add_up_over_positions_and_batches():
  rng = np.random.default_rng(0)
  a, labels = rng.normal(size=(6, 2, 2, 3)), np.array([0, 1, 1, 0, 2, 1])
  whole = specialization.class_contributions(a, labels, 4)
  parts = [
    specialization.class_contributions(a[part], labels[part], 4)
    for part in (slice(0, 2), slice(2, 6))
  ]
  np.testing.assert_allclose(whole, sum(parts))
  np.testing.assert_allclose(whole[1, 1], np.abs(a[labels == 1][..., 1]).sum())
  assert not whole[:, 3].any()
  with pytest.raises(ValueError, match="one an example, got 5 for 6"):
    specialization.class_contributions(a, labels[:5], 4)


def test_the_weakest_channels_are_left_out():
  table = np.array([[50.0, 30.0], [3.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 15.0]])
  assert specialization.class_specialization(table).tolist() == [50 / 80, 1.0]
  every = specialization.class_specialization(table, 0.0)
  assert every.tolist() == [50 / 80, 1.0, 0.5, 1.0]
  with pytest.raises(ValueError, match=r"ignored must be in \[0, 1\), got 1"):
    specialization.class_specialization(table, 1)


def test_anova_of_a_balanced_table():
  """Cells of two: 1 3, 5 7 dense; 2 4, 10 12 sparse, worked out by hand."""
  dense = {"a": np.array([1.0, 3.0]), "b": np.array([5.0, 7.0])}
  sparse = {"a": np.array([2.0, 4.0]), "b": np.array([10.0, 12.0])}
  table = specialization.specialization_anova(dense, sparse)
  squares = {name: effect.sum_of_squares for name, effect in table.items()}
  want = {"layer": 72.0, "sparse": 18.0, "layer:sparse": 8.0, "residual": 8.0}
  assert squares == pytest.approx(want)
  assert table["sparse"].f == pytest.approx(9.0)
  assert table["sparse"].p == pytest.approx(0.0399, abs=1e-4)
  assert sum(effect.eta_squared for effect in table.values()) == pytest.approx(1.0)
  with pytest.raises(ValueError, match=r"same two or more layers, got \['a'\]"):
    specialization.specialization_anova({"a": dense["a"]}, sparse)


def test_estimates_of_a_dense_layer_and_a_convolution():
  w = jnp.ones((4, 2)).at[3].set(0.0).at[0, 0].set(0.0)
  x = jnp.ones((2, 4)).at[:, 0].set(0.0).at[0, 1].set(0.0)
  found = estimated_speedups(lambda w, x: x @ w, w, None, x)
  assert found.empty_channels == pytest.approx(1 / (0.75 * 0.75))
  assert found.optimal_sparse == pytest.approx(1 / (5 / 8 * 5 / 8))
  kernel = jnp.ones((3, 3, 2, 4)).at[:, :, 0].set(0.0)
  conv = lambda k, x: models.conv2d(x, k)
  found = estimated_speedups(conv, kernel, None, jnp.ones((1, 4, 4, 2)))
  assert found[:2] == pytest.approx((2.0, 2.0))
  assert found.layers[0]["multiply_adds"] == 16 * 72
