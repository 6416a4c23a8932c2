"""Products that skip dead blocks give what dense ones give."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sparsejax.ops import _block_dot, _record, block_dot, block_dot_general, live_blocks

BLOCK = (32, 32)
# Six of 64 blocks, at most the share that is worth a loop; one column without any.
LIVE = np.zeros((8, 8), bool)
LIVE[[0, 1, 1, 3, 7, 7], [0, 2, 5, 2, 7, 0]] = True
MASK = np.kron(LIVE, np.ones((32, 32))) > 0


def _kernel(dead=-0.0, dtype=jnp.float32):
  values = np.random.default_rng(0).normal(size=MASK.shape)
  return jnp.where(MASK, jnp.asarray(values, dtype), jnp.asarray(dead, dtype))


def _x(*lead, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(1).normal(size=(*lead, 256)), dtype)


def _sparse(x, kernel):
  return block_dot(x, kernel, BLOCK)


def _dense(x, kernel):
  return x @ kernel


def _loss(product):
  return lambda x, kernel: jnp.sum(jnp.sin(product(x, kernel)))


def _close(a, b, scale=1e-5):
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  np.testing.assert_allclose(a, b, atol=scale * max(np.abs(b).max(), 1.0))


def _paths(function, *args):
  """The (visited, wanted) blocks of each product, as `explain` sees them."""
  with _record.recording() as entries:
    jax.block_until_ready(jax.jit(lambda *a: function(*a))(*args))
    jax.effects_barrier()
  return [run for entry in entries for run in entry.get("runs", [])]


def test_dead_blocks_are_found_by_the_sign_of_their_zeros():
  np.testing.assert_array_equal(live_blocks(_kernel(), BLOCK), LIVE)
  assert live_blocks(_kernel(0.0), BLOCK).all()
  one = _kernel().at[40, 3].set(0.0)  # a weight that has just grown, in a dead block
  assert live_blocks(one, BLOCK).sum() == LIVE.sum() + 1
  for dtype in (jnp.bfloat16, jnp.float16):
    np.testing.assert_array_equal(live_blocks(_kernel().astype(dtype), BLOCK), LIVE)
  tiny = _kernel().at[40, 3].set(1e-45)  # subnormal: a comparison may flush it
  assert live_blocks(tiny, BLOCK).sum() == LIVE.sum() + 1


def test_the_loop_is_taken_where_few_blocks_are_live():
  assert _paths(_sparse, _x(32), _kernel()) == [(6, 6)]
  # +0.0 is skipped in the forward pass, and its gradient is wanted.
  assert _paths(_sparse, _x(32), _kernel(0.0)) == [(6, 64)]
  assert _paths(_sparse, _x(32), jnp.ones((256, 256))) == [(64, 64)]


@pytest.mark.parametrize("dead", [-0.0, 0.0, 0.25])
def test_values_and_gradients_are_the_dense_ones(dead):
  x, kernel = _x(2, 16), _kernel(dead)
  _close(jax.jit(_sparse)(x, kernel), _dense(x, kernel))
  dx, dw = jax.jit(jax.grad(_loss(_sparse), (0, 1)))(x, kernel)
  want_x, want_w = jax.grad(_loss(_dense), (0, 1))(x, kernel)
  _close(dx, want_x)
  skipped = np.signbit(dead)
  _close(dw, np.where(MASK, want_w, 0.0) if skipped else want_w)
  for one, both in ((0, dx), (1, dw)):
    _close(jax.jit(jax.grad(_loss(_sparse), one))(x, kernel), both)


def test_a_live_block_of_zeros_gets_its_gradient():
  grown = np.zeros_like(MASK)
  grown[32:64, 64:96] = True  # block (1, 2), live
  kernel = jnp.where(grown, jnp.float32(0.0), _kernel())
  dw = jax.grad(_loss(_sparse), 1)(_x(32), kernel)
  want = jax.grad(_loss(_dense), 1)(_x(32), kernel)
  _close(dw, np.where(MASK, want, 0.0))
  assert np.abs(np.asarray(dw)[grown]).max() > 1


@pytest.mark.parametrize(
  ("dtype", "scale"), [("bfloat16", 1e-2), ("float16", 2e-3), ("float64", 1e-12)]
)
def test_dtypes(dtype, scale, monkeypatch):
  monkeypatch.setattr(_block_dot, "live_share", lambda *args: 0.1)
  with jax.enable_x64(dtype == "float64"):
    x, kernel = _x(32, dtype=dtype), _kernel(dtype=dtype)
    y = jax.jit(_sparse)(x, kernel)
    dx, dw = jax.jit(jax.grad(_loss(_sparse), (0, 1)))(x, kernel)
    assert y.dtype == dx.dtype == dw.dtype == jnp.dtype(dtype)
    wide = lambda a: np.asarray(a, np.float64)
    want = wide(x) @ wide(kernel)
    _close(y, want, scale)
    d = np.cos(want)
    _close(dx, d @ wide(kernel).T, 3 * scale)
    _close(dw, np.where(MASK, wide(x).T @ d, 0.0), 3 * scale)
    # Sums are float32 at least: what comes out as float32 is exact to that.
    out = block_dot(x, kernel, BLOCK, preferred_element_type=jnp.float32)
    assert out.dtype == jnp.float32
    _close(out, want, 1e-5)


def test_given_live_blocks_and_precision():
  x, kernel = _x(4), _kernel()  # four rows: only with `live` is it worth a loop
  y = block_dot(x, kernel, BLOCK, live=live_blocks(kernel, BLOCK), precision="highest")
  _close(y, _dense(x, kernel))
  product = lambda x, w: block_dot(x, w, BLOCK, live=jnp.asarray(LIVE))
  assert _paths(product, x, kernel) == [(6, 6)]
  assert _paths(_sparse, x, kernel) == []


def test_second_derivatives():
  def second(product):
    def of_gradients(x, kernel):
      dx, dw = jax.grad(_loss(product), (0, 1))(x, kernel)
      return jnp.sum(dx**2) + jnp.sum(jnp.cos(dw))

    return jax.grad(of_gradients, (0, 1))

  x, kernel = _x(32), _kernel()
  masked = lambda x, w: x @ jnp.where(MASK, w, jnp.zeros_like(w))
  got, want = jax.jit(second(_sparse))(x, kernel), second(masked)(x, kernel)
  _close(got[0], want[0], 1e-4)
  _close(np.where(MASK, got[1], 0.0), want[1], 1e-4)
  with pytest.raises(TypeError, match="forward-mode"):
    jax.jvp(_sparse, (x, kernel), (x, kernel))


def test_scan_remat_and_vmap():
  kernels = jnp.stack([_kernel(), _kernel(0.0), _kernel() * 2])
  x = _x(32)

  def deep(product):
    def body(h, kernel):
      return jnp.tanh(product(h, kernel)), None

    return lambda x, ks: jnp.sum(jax.lax.scan(jax.checkpoint(body), x, ks)[0])

  got = jax.jit(jax.grad(deep(_sparse), (0, 1)))(x, kernels)
  want = jax.grad(deep(_dense), (0, 1))(x, kernels)
  _close(got[0], want[0], 1e-4)
  marked = np.array([True, False, True])[:, None, None]
  _close(got[1], np.where(MASK | ~marked, want[1], 0.0), 1e-4)
  assert _paths(deep(_sparse), x, kernels) == [(6, 6), (6, 64), (6, 6)]
  # Examples, then kernels: the second runs both branches.
  many = _x(3, 16)
  _close(jax.vmap(_sparse, (0, None))(many, kernels[0]), _dense(many, kernels[0]))
  both = jax.jit(jax.vmap(jax.grad(_loss(_sparse), 1), (None, 0)))(x, kernels[:2])
  want = jax.grad(_loss(_dense), 1)(x, kernels[0])
  _close(both[0], np.where(MASK, want, 0.0))
  _close(both[1], want)


def _mesh(axis_type=AxisType.Auto):
  return jax.make_mesh((8,), ("data",), axis_types=(axis_type,))


def test_shard_map_over_the_batch_sums_the_kernels_gradient():
  product = jax.shard_map(
    _sparse, mesh=_mesh(), in_specs=(P("data"), P()), out_specs=P("data")
  )
  x, kernel = _x(128), _kernel()
  dx, dw = jax.jit(jax.grad(_loss(product), (0, 1)))(x, kernel)
  want_x, want_w = jax.grad(_loss(_dense), (0, 1))(x, kernel)
  _close(dx, want_x)
  _close(dw, np.where(MASK, want_w, 0.0))


def test_shard_map_over_the_outputs():
  product = jax.shard_map(
    _sparse, mesh=_mesh(), in_specs=(P(), P(None, "data")), out_specs=P(None, "data")
  )
  x, kernel = _x(32), _kernel()
  dx, dw = jax.jit(jax.grad(_loss(product), (0, 1)))(x, kernel)
  want_x, want_w = jax.grad(_loss(_dense), (0, 1))(x, kernel)
  _close(dx, want_x)
  _close(dw * MASK.astype(np.float32), np.where(MASK, want_w, 0.0))


@pytest.mark.parametrize("spec", [P(), P("data")], ids=["replicated", "fsdp"])
def test_sharded_batches_move_no_more_than_densely(spec):
  mesh = _mesh()
  where = (NamedSharding(mesh, P("data")), NamedSharding(mesh, spec))
  x = jax.device_put(_x(128), where[0])
  kernel = jax.device_put(_kernel(), where[1])
  with jax.set_mesh(mesh):
    grads = jax.jit(jax.grad(_loss(_sparse), (0, 1)), out_shardings=where)
    compiled = grads.lower(x, kernel).compile()
    dx, dw = compiled(x, kernel)
  want_x, want_w = jax.grad(_loss(_dense), (0, 1))(_x(128), _kernel())
  _close(dx, want_x)
  _close(dw, np.where(MASK, want_w, 0.0))
  text = compiled.as_text()
  assert "all-to-all" not in text
  gathers = [line for line in text.splitlines() if " all-gather(" in line]
  # The kernel whole, once; nothing in a loop.
  assert len(gathers) == (1 if spec else 0), gathers
  assert all("while" not in line for line in gathers)


def test_explicit_axes_are_dense():
  mesh = _mesh(AxisType.Explicit)
  with jax.set_mesh(mesh), _record.recording() as entries:
    y = jax.jit(_sparse)(jax.device_put(_x(128), P("data")), _kernel())
  _close(y, _dense(_x(128), _kernel()))
  assert "explicit" in entries[0]["reason"]


def test_flax_layers():
  dot = block_dot_general(BLOCK)
  x = _x(2, 16)
  layers = [
    nn.Dense(256, dot_general=dot),
    nn.DenseGeneral((8, 32), dot_general=dot),
    nn.DenseGeneral((8, 32), dot_general=dot, dtype=jnp.bfloat16),
  ]
  for layer in layers:
    params = layer.init(jax.random.key(0), x)
    kernel = _kernel().reshape(params["params"]["kernel"].shape)
    params = {"params": params["params"] | {"kernel": kernel}}
    assert _paths(layer.apply, params, x) == [(6, 6)]
    plain = layer.clone(dot_general=None)
    if isinstance(layer, nn.Dense):
      plain = layer.clone(dot_general=jax.lax.dot_general)
    _close(layer.apply(params, x), plain.apply(params, x), 1e-2)
  # The output of attention contracts two axes of its kernel.
  attention = nn.MultiHeadDotProductAttention(
    num_heads=8, qkv_dot_general=dot, out_dot_general=dot
  )
  params = attention.init(jax.random.key(0), x)
  params = jax.tree.map(
    lambda p: _kernel().reshape(p.shape) if p.ndim == 3 else p, params
  )
  assert _paths(attention.apply, params, x) == [(6, 6)] * 4
  plain = attention.clone(qkv_dot_general=None, out_dot_general=None)
  _close(attention.apply(params, x), plain.apply(params, x))
  linear = nnx.Linear(256, 256, rngs=nnx.Rngs(0), dot_general=dot)
  linear.kernel[...] = _kernel()
  _close(linear(x), _dense(x, _kernel()))
  general = nnx.LinearGeneral(256, (8, 32), rngs=nnx.Rngs(0), dot_general=dot)
  general.kernel[...] = _kernel().reshape(256, 8, 32)
  _close(general(x), _dense(x, _kernel()).reshape(2, 16, 8, 32))


@pytest.mark.parametrize(
  ("shapes", "dimension_numbers", "reason"),
  [
    (((4, 60), (60, 64)), (((1,), (0,)), ((), ())), "does not divide"),
    (((4, 64), (32, 64)), (((1,), (1,)), ((), ())), "first axes"),
    (((64, 4), (64, 32)), (((0,), (0,)), ((), ())), "last axes"),
    (((3, 4, 64), (3, 64, 32)), (((2,), (1,)), ((0,), (0,))), "batch axes"),
  ],
)
def test_other_products_are_dense(shapes, dimension_numbers, reason):
  x, kernel = (
    jnp.asarray(np.random.default_rng(0).normal(size=s), jnp.float32) for s in shapes
  )
  with _record.recording() as entries:
    y = block_dot_general(BLOCK)(x, kernel, dimension_numbers)
  np.testing.assert_array_equal(y, jax.lax.dot_general(x, kernel, dimension_numbers))
  assert reason in entries[0]["reason"]
  integers = block_dot_general(BLOCK)(
    x.astype(jnp.int32), kernel.astype(jnp.int32), dimension_numbers
  )
  assert integers.dtype == jnp.int32


@pytest.mark.parametrize(
  ("call", "error", "message"),
  [
    (lambda x, w: block_dot(x, w, (48, 32)), ValueError, "block must divide"),
    (lambda x, w: block_dot(x, w, 32), TypeError, "block must be 2 integers"),
    (lambda x, w: block_dot(x, w[:32], BLOCK), ValueError, "kernel must be"),
    (lambda x, w: block_dot(x.astype(jnp.bfloat16), w, BLOCK), TypeError, "x must"),
    (lambda x, w: block_dot(x, w.astype(int), BLOCK), TypeError, "kernel must be"),
    (
      lambda x, w: block_dot(x, w, BLOCK, preferred_element_type=jnp.int32),
      TypeError,
      "preferred_element_type must",
    ),
    (
      lambda x, w: block_dot(x, w, BLOCK, live=jnp.ones((2, 2), bool)),
      ValueError,
      "live must be bool of shape",
    ),
    (lambda x, w: block_dot_general((0, 4)), ValueError, "block must be at least 1"),
  ],
)
def test_bad_input(call, error, message):
  with pytest.raises(error, match=message):
    call(_x(32), _kernel())
