"""The Pallas kernels give what dense products give, and lower for GPUs and TPUs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from sparsejax.ops import _record, block_dot, block_dot_general

BLOCK = (16, 32)
# Six of 16 blocks; a column and a row without any.
LIVE = np.zeros((4, 4), bool)
LIVE[[0, 0, 1, 1, 3, 3], [0, 1, 0, 3, 1, 3]] = True
MASK = np.kron(LIVE, np.ones(BLOCK)) > 0


def _kernel(dtype=jnp.float32):
  values = np.random.default_rng(0).normal(size=MASK.shape)
  return jnp.where(MASK, jnp.asarray(values, dtype), jnp.asarray(-0.0, dtype))


def _x(*lead, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(1).normal(size=(*lead, 64)), dtype)


_pallas = functools.partial(block_dot, block=BLOCK, implementation="pallas")


def _loss(product):
  return lambda x, kernel: jnp.sum(jnp.sin(product(x, kernel).astype(jnp.float32)))


# 200 rows are two tiles, the second of them padded; 5 rows are less than one.
@pytest.mark.parametrize(
  ("lead", "dtype"), [((2, 100), jnp.float32), ((5,), jnp.bfloat16)]
)
def test_the_product_and_its_gradients_are_those_of_the_live_blocks(lead, dtype):
  x, kernel = _x(*lead, dtype=dtype), _kernel(dtype)
  y, (dx, dw) = jax.jit(lambda *a: (_pallas(*a), jax.grad(_loss(_pallas), (0, 1))(*a)))(
    x, kernel
  )
  # In float64 on the host.
  wide = lambda a: np.asarray(a, np.float64)
  product = wide(x) @ wide(kernel)
  slope = np.cos(product)
  expected = (
    product,
    slope @ wide(kernel).T,
    np.where(MASK, wide(x).reshape(-1, 64).T @ slope.reshape(-1, slope.shape[-1]), 0.0),
  )
  bound = 1e-5 if dtype == jnp.float32 else 2e-2
  for got, want in zip((y, dx, dw), expected, strict=True):
    assert got.dtype == dtype
    assert got.shape == want.shape
    np.testing.assert_allclose(wide(got), want, atol=bound * np.abs(want).max())
  assert not np.any(np.asarray(dw, np.float32)[~MASK])


def test_second_derivatives_are_those_of_the_dense_product():
  x, kernel = _x(16), _kernel()
  v = jnp.asarray(np.random.default_rng(2).normal(size=x.shape), jnp.float32)

  def hvp(product):
    slope = lambda x: jnp.vdot(jax.grad(_loss(product))(x, kernel), v)
    return jax.jit(jax.grad(slope))(x)

  np.testing.assert_allclose(hvp(_pallas), hvp(jnp.matmul), atol=1e-3)


@pytest.mark.parametrize(
  ("platform", "side", "target"),
  [("cuda", 64, "triton"), ("tpu", 128, "tpu_custom_call"), ("tpu", 64, None)],
)
def test_the_kernels_lower_for_accelerators(platform, side, target):
  def lowered(implementation):
    product = functools.partial(
      block_dot, block=(side, side), implementation=implementation
    )
    traced = jax.jit(jax.grad(_loss(product), (0, 1))).trace(
      jnp.ones((256, 256)), jnp.ones((256, 256))
    )
    return traced.lower(lowering_platforms=(platform,)).as_text()

  kernels = lambda text: (
    text.count("stablehlo.custom_call @__gpu$xla.gpu.triton")
    + (text.count("stablehlo.custom_call @tpu_custom_call"))
  )
  # One kernel for the forward pass and one per gradient; a branch computes the gradient
  # of x alone. Blocks too small for a TPU's tiles are dense.
  found = kernels(lowered("pallas"))
  assert found >= 3 if target else found == 0
  # Without being asked for, the product stays dense.
  assert kernels(lowered(None)) == 0


def test_they_work_in_shard_map_over_the_batch():
  mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
  x, kernel = _x(64), _kernel()
  gradients = jax.grad(_loss(_pallas), (0, 1))

  # Pallas' interpret mode does not support the check of varying axes, which would sum
  # the gradient of a replicated kernel over the devices.
  def summed(x, kernel):
    dx, dw = gradients(x, kernel)
    return dx, jax.lax.psum(dw, "data")

  sharded = jax.shard_map(
    summed,
    mesh=mesh,
    in_specs=(P("data"), P()),
    out_specs=(P("data"), P()),
    check_vma=False,
  )
  sharded, plain = jax.jit(sharded)(x, kernel), jax.jit(gradients)(x, kernel)
  for a, b in zip(sharded, plain, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_what_the_kernels_do_not_support_is_dense_and_says_why():
  x = jnp.ones((32, 24))
  with _record.recording() as entries:
    y = block_dot(x, jnp.ones((24, 24)), (8, 8), implementation="pallas")
    block_dot(
      x,
      jnp.ones((24, 24)),
      (24, 24),
      implementation="pallas",
    )
  np.testing.assert_array_equal(y, np.full((32, 24), 24.0))
  assert [e["reason"] for e in entries] == [
    "Pallas kernels need blocks with sides of 2^n >= 16"
  ] * 2


def test_an_unknown_implementation_is_refused():
  for call in (
    lambda: block_dot(_x(4), _kernel(), BLOCK, implementation="cuda"),
    lambda: block_dot_general(BLOCK, implementation="cuda"),
  ):
    with pytest.raises(ValueError, match="implementation must be"):
      call()
