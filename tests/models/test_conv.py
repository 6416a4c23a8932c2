"""`conv2d` and `Conv` against XLA's own convolution and flax's own layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sparsejax.models import Conv, conv2d

# image (n, h, w, c), kernel (h, w, features), strides, padding
CASES = [
  ((3, 7, 6, 2), (1, 1, 3), (1, 1), "VALID"),
  ((3, 7, 6, 2), (1, 1, 3), (2, 2), "SAME"),
  ((2, 7, 8, 3), (3, 3, 4), (1, 1), "SAME"),
  ((2, 7, 8, 3), (3, 3, 4), (1, 1), "VALID"),
  ((2, 7, 8, 3), (3, 3, 4), (2, 2), "SAME"),
  ((2, 9, 8, 1), (5, 5, 6), (1, 1), "VALID"),
  ((2, 9, 8, 2), (5, 5, 6), (3, 2), "VALID"),
  ((2, 6, 6, 2), (2, 3, 5), (1, 1), ((0, 2), (3, 1))),
  ((2, 2, 3, 2), (5, 5, 3), (1, 1), "SAME"),
  ((2, 6, 6, 2), (3, 3, 50), (1, 1), "VALID"),
  ((1, 3, 3, 4), (3, 3, 7), (1, 1), "VALID"),
]


def arrays(shape, kernel, dtype=np.float32, seed=0):
  rng = np.random.default_rng(seed)
  kh, kw, features = kernel
  shapes = shape, (kh, kw, shape[-1], features), (features,)
  return tuple(jnp.asarray(rng.normal(size=s).astype(dtype)) for s in shapes)


def reference(x, kernel, bias, strides=(1, 1), padding="SAME"):
  y = lax.conv_general_dilated(
    x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  return y + bias[None, None, None]


def value_and_grads(f, args, seed=1):
  dy = np.random.default_rng(seed).normal(size=jax.eval_shape(f, *args).shape)

  @jax.jit
  def run(*args):
    y, vjp = jax.vjp(f, *args)
    return y, vjp(jnp.asarray(dy, y.dtype))

  return run(*args)


def assert_close(a, b, tolerance):
  """Equal up to `tolerance` of the largest element."""
  assert a.shape == b.shape
  assert a.dtype == b.dtype
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(initial=1.0))


def assert_same(args, strides, padding, tolerance):
  y, grads = value_and_grads(
    lambda *args: conv2d(*args, strides=strides, padding=padding), args
  )
  want, want_grads = value_and_grads(
    lambda *args: reference(*args, strides, padding), args
  )
  assert_close(y, want, tolerance)
  for grad, want_grad in zip(grads, want_grads, strict=True):
    assert_close(grad, want_grad, tolerance)


@pytest.mark.parametrize(("shape", "kernel", "strides", "padding"), CASES)
def test_equals_lax_in_value_and_gradients(shape, kernel, strides, padding):
  assert_same(arrays(shape, kernel), strides, padding, 3e-6)


@pytest.mark.parametrize(("shape", "kernel", "strides", "padding"), CASES[2:7])
def test_equals_lax_in_float64(shape, kernel, strides, padding):
  with jax.enable_x64(True):
    assert_same(arrays(shape, kernel, np.float64), strides, padding, 1e-14)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_rounded_once(dtype):
  args = [a.astype(dtype) for a in arrays((2, 8, 8, 3), (3, 3, 4))]
  wide = [a.astype(jnp.float32) for a in args]
  y, grads = value_and_grads(conv2d, args)
  assert y.dtype == dtype
  eps = float(jnp.finfo(dtype).eps)
  assert_close(y.astype(jnp.float32), reference(*wide), 2 * eps)
  dy = jnp.asarray(np.random.default_rng(1).normal(size=y.shape), dtype)
  want = jax.vjp(reference, *wide)[1](dy.astype(jnp.float32))
  for grad, want_grad in zip(grads[1:], want[1:], strict=True):
    assert_close(grad.astype(jnp.float32), want_grad, 4 * eps)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_equals_lax_for_any_shape(data):
  def draw(low, high):
    return data.draw(st.integers(low, high))

  kh, kw = draw(1, 4), draw(1, 4)
  shape = (draw(1, 3), draw(kh, 7), draw(kw, 7), draw(1, 3))
  strides = (draw(1, 3), draw(1, 3))
  padding = data.draw(
    st.sampled_from(["SAME", "VALID", ((draw(0, 2), 0), (0, draw(0, 2)))])
  )
  assert_same(arrays(shape, (kh, kw, draw(1, 4))), strides, padding, 3e-6)


@pytest.mark.parametrize("axes", [(0, 0, 0), (None, 0, 0), (0, None, None), (2, 4, 1)])
def test_vmap_over_stacked_kernels(axes):
  args = arrays((2, 6, 5, 3), (3, 3, 4))
  stacked = [
    a if axis is None else jnp.stack([a, 2 * a, a - 1], axis)
    for a, axis in zip(args, axes, strict=True)
  ]
  f = jax.vmap(lambda *args: value_and_grads(conv2d, args), in_axes=axes)
  want = jax.vmap(lambda *args: value_and_grads(reference, args), in_axes=axes)
  for a, b in zip(
    jax.tree.leaves(f(*stacked)), jax.tree.leaves(want(*stacked)), strict=True
  ):
    assert_close(a, b, 3e-6)


def test_inside_scan_with_grad():
  x, kernel, bias = arrays((2, 6, 6, 3), (3, 3, 3))

  def loss(f, kernel):
    def layer(x, _):
      return jnp.tanh(f(x, kernel, bias)), None

    return lax.scan(layer, x, None, length=3)[0].sum()

  ours = jax.jit(jax.grad(lambda k: loss(conv2d, k)))(kernel)
  want = jax.jit(jax.grad(lambda k: loss(reference, k)))(kernel)
  assert_close(ours, want, 1e-5)


def test_reverse_mode_twice():
  x, kernel, bias = arrays((2, 5, 5, 2), (3, 3, 3))

  def hvp(f):
    grad = jax.grad(lambda k: jnp.sum(jnp.tanh(f(x, k, bias)) ** 2))
    return jax.grad(lambda k: jnp.vdot(grad(k), kernel))(kernel)

  assert_close(jax.jit(lambda: hvp(conv2d))(), jax.jit(lambda: hvp(reference))(), 1e-5)


def test_forward_mode_needs_the_lax_lowering():
  x, kernel, bias = arrays((2, 5, 5, 2), (3, 3, 3))
  f = lambda k: conv2d(x, k, bias, lowering="lax")
  got = jax.jvp(f, (kernel,), (kernel,))[1]
  assert_close(got, reference(x, kernel, 0 * bias), 1e-5)
  with pytest.raises(TypeError, match="forward-mode"):
    jax.jvp(lambda k: conv2d(x, k, bias), (kernel,), (kernel,))


@pytest.mark.parametrize(
  ("lowering", "platform", "convolves"),
  [
    ("auto", "cpu", False),
    ("auto", "tpu", True),
    ("auto", "cuda", True),
    ("slices", "tpu", False),
    ("lax", "cpu", True),
  ],
)
def test_platform_decides_the_lowering(lowering, platform, convolves):
  args = arrays((2, 6, 6, 2), (3, 3, 4))
  f = jax.jit(
    lambda *args: value_and_grads(lambda *args: conv2d(*args, lowering=lowering), args)
  )
  text = f.trace(*args).lower(lowering_platforms=(platform,)).as_text()
  assert ("stablehlo.convolution" in text) == convolves
  assert ("stablehlo.dot_general" in text) != convolves


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_batch_sharded_over_devices(axis_type):
  x, kernel, bias = arrays((4, 6, 6, 2), (3, 3, 4))
  want = value_and_grads(conv2d, (x, kernel, bias))
  mesh = jax.make_mesh((2,), ("data",), axis_types=(axis_type,))
  with jax.set_mesh(mesh):
    batch = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    dy = np.random.default_rng(1).normal(size=want[0].shape).astype(np.float32)
    args = jax.device_put((x, kernel, bias, dy), (batch, everywhere, everywhere, batch))

    @jax.jit
    def f(x, kernel, bias, dy):
      y, vjp = jax.vjp(conv2d, x, kernel, bias)
      return y, vjp(dy)

    got = f(*args)
  assert got[0].sharding.is_equivalent_to(batch, 4)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert_close(np.asarray(a), np.asarray(b), 3e-6)


def test_replicated_kernel_in_shard_map():
  """The kernel's gradient sums over the devices, as with XLA's convolution."""
  x, kernel, bias = arrays((4, 6, 6, 2), (3, 3, 4))
  mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
  batch, everywhere = PartitionSpec("data"), PartitionSpec()

  @jax.jit
  @jax.shard_map(mesh=mesh, in_specs=(batch, everywhere), out_specs=everywhere)
  def f(x, params):
    def loss(params):
      return lax.psum(jnp.sum(conv2d(x, *params) ** 2), "data")

    return jax.grad(loss)(params)

  got = f(x, (kernel, bias))
  want = jax.grad(lambda p: jnp.sum(reference(x, *p) ** 2))((kernel, bias))
  for a, b in zip(got, want, strict=True):
    assert_close(a, b, 3e-6)


def test_bias_may_be_missing():
  x, kernel, bias = arrays((2, 5, 5, 2), (3, 3, 3))
  assert_close(conv2d(x, kernel), reference(x, kernel, 0 * bias), 3e-6)
  grad = jax.grad(lambda k: conv2d(x, k).sum())(kernel)
  want = jax.grad(lambda k: reference(x, k, bias).sum())(kernel)
  assert_close(grad, want, 3e-6)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(x=jnp.zeros((5, 5, 2))), r"got \(5, 5, 2\)"),
    (dict(kernel=jnp.zeros((3, 3, 4, 3))), r"\(3, 3, 4, 3\)"),
    (dict(bias=jnp.zeros((4,))), r"bias must be of shape \(3,\); got \(4,\)"),
    (dict(x=jnp.zeros((1, 5, 5, 2), jnp.bfloat16)), "bfloat16"),
    (dict(x=jnp.zeros((1, 5, 5, 2), jnp.int32)), "int32"),
    (dict(lowering="fast"), "'fast'"),
    (dict(x=jnp.zeros((1, 2, 5, 2)), padding="VALID"), r"\(3, 3\).*\(2, 5\)"),
  ],
)
def test_bad_input_is_named(change, message):
  kwargs = dict(
    x=jnp.zeros((1, 5, 5, 2)), kernel=jnp.zeros((3, 3, 2, 3)), bias=jnp.zeros((3,))
  )
  with pytest.raises(ValueError, match=message):
    conv2d(**(kwargs | change))


@pytest.mark.parametrize("shape", [(5, 5, 2), (3, 5, 5, 2), (2, 3, 5, 5, 2)])
@pytest.mark.parametrize(
  "kwargs",
  [
    dict(padding="SAME"),
    dict(padding="VALID", strides=2),
    dict(padding=((1, 0), (0, 1)), strides=(1, 2), use_bias=False),
    dict(dtype=jnp.bfloat16),
  ],
)
def test_layer_equals_flax(shape, kwargs):
  x = jnp.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32))
  ours, theirs = (
    layer(features=4, kernel_size=(3, 3), bias_init=nn.initializers.ones, **kwargs)
    for layer in (Conv, nn.Conv)
  )
  variables = ours.init(jax.random.key(0), x)
  want = theirs.init(jax.random.key(0), x)
  assert jax.tree.structure(variables) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(want), strict=True):
    np.testing.assert_array_equal(a, b)
  tolerance = 2e-2 if "dtype" in kwargs else 3e-6
  assert_close(ours.apply(variables, x), theirs.apply(variables, x), tolerance)
