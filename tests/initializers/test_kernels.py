"""Orthogonal, sparse and Gaussian kernels: what they promise, what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import initializers

KEY = jax.random.key(0)


def distance(w):
  """max |W W^T - I|."""
  gram = np.asarray(w, np.float64) @ np.swapaxes(np.asarray(w, np.float64), -1, -2)
  return np.abs(gram - np.eye(gram.shape[-1])).max()


def test_delta_orthogonal_is_orthogonal_in_every_layer():
  init = jax.jit(initializers.delta_orthogonal(stacked=True), static_argnums=1)
  kernel = np.array(init(KEY, (50, 3, 3, 16, 16)))
  assert distance(kernel[:, 1, 1]) < 1e-5
  assert len(np.unique(kernel[:, 1, 1, 0, 0])) == 50
  kernel[:, 1, 1] = 0
  assert not kernel.any()


@pytest.mark.parametrize("shape", [(3, 4, 6), (4, 3, 2, 4), (3, 3, 3, 2, 3)])
def test_delta_orthogonal_in_any_dimension(shape):
  init = initializers.delta_orthogonal(2.0, stacked=False)
  kernel = init(KEY, shape, jnp.bfloat16 if len(shape) == 3 else jnp.float32)
  middle = kernel[tuple((k - 1) // 2 for k in shape[:-2])].astype(jnp.float32)
  assert distance(middle / 2) < (3e-2 if len(shape) == 3 else 1e-5)
  assert int((kernel != 0).sum()) == middle.size


@pytest.mark.parametrize("shape", [(4, 4, 6), (3, 3, 4, 4), (2, 2, 2, 3, 3)])
def test_block_orthogonal_is_an_isometry_under_circular_padding(shape):
  kernel = np.asarray(initializers.block_orthogonal(stacked=False)(KEY, shape))
  taps, (c_in, _) = shape[:-2], shape[-2:]
  if len(taps) < 3:
    assert (np.abs(kernel).max((-1, -2)) > 1e-3).all()
  # The kernel at every frequency is a matrix; all must be orthogonal.
  axes = tuple(range(len(taps)))
  at = np.fft.fftn(kernel, (5,) * len(taps), axes).reshape(-1, *shape[-2:])
  gram = at @ at.conj().transpose(0, 2, 1)
  np.testing.assert_allclose(gram, np.eye(c_in)[None].repeat(len(gram), 0), atol=1e-5)


def test_sparse_orthogonal_is_sparse_and_orthogonal():
  init = initializers.sparse_orthogonal(0.25, stacked=True)
  kernel = init(KEY, (20, 3, 3, 16, 16))
  w = np.asarray(kernel[:, 1, 1])
  assert distance(w) < 1e-5
  assert ((w != 0).sum(-1) == 4).all()
  assert ((w != 0).sum(-2) == 4).all()
  assert len({m.tobytes() for m in w != 0}) == 20
  support = initializers.orthogonal_support(kernel, stacked=True)
  assert support.shape == kernel.shape
  assert (np.asarray(support) == (w != 0)[:, None, None]).all()


def test_nearest_orthogonal_keeps_the_support():
  w = initializers.sparse_orthogonal(0.25)(KEY, (3, 3, 16, 16))[1, 1]
  noise = 0.1 * jax.random.normal(jax.random.key(1), w.shape)
  near = initializers.nearest_orthogonal(jnp.where(w != 0, w + noise, 0.0))
  assert distance(near) < 1e-5
  assert (np.asarray(near != 0) == np.asarray(w != 0)).all()
  # It is the polar factor.
  u, _, v = np.linalg.svd(np.where(w != 0, w + noise, 0))
  np.testing.assert_allclose(near, u @ v, atol=1e-5)


def test_gaussian_variances():
  kernel = initializers.gaussian(1.5, stacked=True)(KEY, (40, 3, 3, 16, 32))
  assert abs(kernel.var() * 16 * 9 / 1.5 - 1) < 0.02
  profile = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]])
  init = initializers.gaussian(1.0, profile)
  kernel = init(KEY, (3, 3, 100, 100))
  np.testing.assert_allclose(100 * kernel.var((2, 3)), profile / 8, rtol=0.1)
  assert abs(initializers.he()(KEY, (3, 3, 64, 64)).var() * 64 * 9 - 2) < 0.05


@pytest.mark.parametrize(
  ("init", "shape", "message"),
  [
    (initializers.delta_orthogonal(), (3, 3, 5, 4), r"c_in=5, c_out=4"),
    (initializers.block_orthogonal(), (3, 3, 5, 4), r"c_in=5, c_out=4"),
    (initializers.block_orthogonal(), (3, 2, 4, 4), r"\(3, 2\)"),
    (initializers.delta_orthogonal(), (7, 3, 3, 4, 4), "stacked must be given"),
    (initializers.gaussian(), (7, 3, 3, 4, 4), "stacked must be given"),
    (initializers.delta_orthogonal(stacked=True), (3, 4, 4), r"stacked=True"),
    (initializers.sparse_orthogonal(0.25), (3, 3, 6, 6), "0.25 x 6 = 1.5"),
    (initializers.sparse_orthogonal(0.5), (3, 3, 4, 6), "c_in=4, c_out=6"),
    (initializers.gaussian(profile=[1, 2, 1]), (3, 3, 4, 4), r"\(3, 3\), got \(3,\)"),
  ],
)
def test_bad_shapes_are_refused(init, shape, message):
  with pytest.raises(ValueError, match=message):
    init(KEY, shape)


@pytest.mark.parametrize(
  "make",
  [
    lambda: initializers.sparse_orthogonal(0.0),
    lambda: initializers.gaussian(-1.0),
    lambda: initializers.gaussian(profile=[-1, 2]),
  ],
)
def test_bad_arguments_are_refused(make):
  with pytest.raises(ValueError, match=r"got (0|-1)|got \[-1"):
    make()
