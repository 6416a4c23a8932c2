"""`max_pool` against `lax.reduce_window`, ties included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sparsejax.models import max_pool

CASES = [
  ((2, 8, 6, 3), (2, 2), None, "VALID"),
  ((2, 9, 7, 3), (2, 2), None, "VALID"),
  ((2, 9, 7, 3), (2, 2), None, "SAME"),
  ((2, 9, 7, 3), (3, 3), (2, 2), "SAME"),
  ((2, 9, 7, 3), (3, 2), (1, 1), "VALID"),
  ((2, 9, 7, 3), (3, 2), (3, 1), ((1, 0), (0, 1))),
  ((2, 6, 6, 1), (1, 1), None, "VALID"),
  ((2, 9, 9, 2), (1, 1), (2, 2), "VALID"),
  ((2, 9, 9, 2), (2, 2), (3, 3), "VALID"),
]


def tied(shape, dtype=np.float32, seed=0):
  """Few values, so that many windows hold their largest more than once."""
  return jnp.asarray(np.random.default_rng(seed).integers(0, 3, shape).astype(dtype))


def distinct(shape, dtype=np.float32, seed=0):
  values = np.random.default_rng(seed).permutation(np.prod(shape))
  return jnp.asarray(values.reshape(shape).astype(dtype))


def reference(x, window, strides, padding):
  strides = strides or window
  if not isinstance(padding, str):
    padding = ((0, 0), *padding, (0, 0))
  lowest = np.array(-np.inf, x.dtype)
  dims, steps = (1, *window, 1), (1, *strides, 1)
  return lax.reduce_window(x, lowest, lax.max, dims, steps, padding)


def value_and_grad(f, x, seed=1):
  # Small integers, whose sums are exact in any order.
  dy = np.random.default_rng(seed).integers(-8, 9, jax.eval_shape(f, x).shape)

  @jax.jit
  def run(x):
    y, vjp = jax.vjp(f, x)
    return y, vjp(jnp.asarray(dy, y.dtype))[0]

  return run(x)


def assert_same(x, window, strides, padding):
  y, dx = value_and_grad(
    lambda x: max_pool(x, window, strides=strides, padding=padding), x
  )
  want, want_dx = value_and_grad(lambda x: reference(x, window, strides, padding), x)
  np.testing.assert_array_equal(y, want)
  np.testing.assert_array_equal(dx, want_dx)
  assert y.dtype == dx.dtype == x.dtype


@pytest.mark.parametrize("fill", [tied, distinct])
@pytest.mark.parametrize(("shape", "window", "strides", "padding"), CASES)
def test_equals_lax_in_value_and_gradient(shape, window, strides, padding, fill):
  assert_same(fill(shape), window, strides, padding)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype):
  assert_same(tied((2, 6, 6, 3), dtype), (2, 2), None, "VALID")


def test_float64():
  with jax.enable_x64(True):
    assert_same(tied((2, 6, 6, 3), np.float64), (2, 2), None, "VALID")


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_equals_lax_for_any_shape(data):
  def draw(low, high):
    return data.draw(st.integers(low, high))

  window = (draw(1, 3), draw(1, 3))
  shape = (draw(1, 2), draw(window[0], 7), draw(window[1], 7), draw(1, 3))
  strides = data.draw(st.sampled_from([None, (draw(1, 3), draw(1, 3))]))
  padding = data.draw(st.sampled_from(["SAME", "VALID"]))
  assert_same(tied(shape, seed=draw(0, 9)), window, strides, padding)


def test_first_of_equal_elements_takes_the_gradient():
  x = jnp.array([[0.0, 2.0], [2.0, 2.0]]).reshape(1, 2, 2, 1)
  dx = jax.grad(lambda x: max_pool(x).sum())(x)
  np.testing.assert_array_equal(dx.reshape(2, 2), [[0, 1], [0, 0]])


def test_vmap_and_scan():
  x = tied((3, 2, 8, 8, 2))

  def pools(f, x):
    return lax.scan(lambda c, _: (f(f(c)), None), x, None, length=1)[0].sum()

  def double(f):
    return lambda x: jnp.repeat(jnp.repeat(f(x), 2, 1), 2, 2)

  ours = jax.vmap(jax.grad(lambda x: pools(double(max_pool), x)))(x)
  want = jax.vmap(
    jax.grad(lambda x: pools(double(lambda x: reference(x, (2, 2), None, "VALID")), x))
  )(x)
  np.testing.assert_array_equal(ours, want)


def test_forward_mode_needs_the_lax_lowering():
  x = distinct((1, 4, 4, 1))
  got = jax.jvp(lambda x: max_pool(x, lowering="lax"), (x,), (x,))[1]
  np.testing.assert_array_equal(got, max_pool(x))


@pytest.mark.parametrize(
  ("lowering", "platform", "windows"),
  [("auto", "cpu", False), ("auto", "cuda", True), ("lax", "cpu", True)],
)
def test_platform_decides_the_lowering(lowering, platform, windows):
  f = jax.jit(lambda x: value_and_grad(lambda x: max_pool(x, lowering=lowering), x))
  text = f.trace(tied((2, 4, 4, 1))).lower(lowering_platforms=(platform,)).as_text()
  assert ("reduce_window" in text) == windows
  assert ("select_and_scatter" in text) == windows


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_batch_sharded_over_devices(axis_type):
  x = tied((4, 6, 6, 2))
  want = jax.grad(lambda x: max_pool(x).sum())(x)
  mesh = jax.make_mesh((2,), ("data",), axis_types=(axis_type,))
  with jax.set_mesh(mesh):
    batch = NamedSharding(mesh, PartitionSpec("data"))
    got = jax.jit(jax.grad(lambda x: max_pool(x).sum()))(jax.device_put(x, batch))
  assert got.sharding.is_equivalent_to(batch, 4)
  np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


@pytest.mark.parametrize(
  ("x", "lowering", "message"),
  [
    (jnp.zeros((4, 4)), "auto", r"shape \(4, 4\)"),
    (jnp.zeros((1, 4, 4, 1), jnp.int32), "auto", "int32"),
    (jnp.zeros((1, 4, 4, 1)), "fast", "'fast'"),
  ],
)
def test_bad_input_is_named(x, lowering, message):
  with pytest.raises(ValueError, match=message):
    max_pool(x, lowering=lowering)
