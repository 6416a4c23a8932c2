import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import lottery


def test_a_barrier_by_hand():
  """Two wells of |w| - 1 at -1 and 1; 30 points miss the top at 0 by 1 / 29."""
  error = lambda w: jnp.abs(jnp.abs(w["kernel"]) - 1)
  a, b = {"kernel": jnp.float32(-1)}, {"kernel": jnp.float32(1)}
  errors = lottery.error_on_line(error, a, b)
  assert errors.shape == (30,)
  assert (errors[0], errors[-1]) == (0, 0)
  np.testing.assert_allclose(lottery.instability(errors), 1 - 1 / 29, rtol=1e-5)
  odd = lottery.error_on_line(error, a, b, points=31)
  np.testing.assert_allclose(lottery.instability(odd), 1, rtol=1e-5)


def test_the_mean_of_the_ends_counts():
  several = jnp.array([[1.0, 4.0, 3.0], [5.0, 2.0, 1.0]])
  assert lottery.instability(several).tolist() == [2.0, 2.0]


def test_counters_are_not_mixed():
  middle = lottery.interpolate((jnp.int32(3), jnp.ones(2)), (5, jnp.zeros(2)), 0.5)
  assert int(middle[0]) == 3
  assert middle[1].tolist() == [0.5, 0.5]


def test_too_few_points():
  with pytest.raises(ValueError, match="points must be at least 2, got 1"):
    lottery.error_on_line(jnp.sum, jnp.ones(2), jnp.zeros(2), points=1)
