"""Convolutions that skip dead blocks give what dense ones give."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparsejax.ops import _record, block_conv_general_dilated

BLOCK = (32, 32)
CONV = block_conv_general_dilated(BLOCK)
NUMBERS = ("NHWC", "HWIO", "NHWC")


def _kernel(taps=(3, 2), dead=-0.0):
  rng = np.random.default_rng(0)
  live = np.zeros((*taps, 2, 3), bool)
  live.reshape(-1)[rng.permutation(live.size)[: live.size // 12]] = True
  mask = np.kron(live, np.ones((32, 32))) > 0
  values = rng.normal(size=mask.shape)
  return jnp.where(mask, jnp.asarray(values, jnp.float32), jnp.float32(dead)), mask


def _close(a, b):
  np.testing.assert_allclose(a, b, atol=2e-5 * max(float(np.abs(b).max()), 1.0))


CASES = {
  "same": ((1, 1), "SAME", (1, 1)),
  "strided": ((2, 3), "VALID", (1, 1)),
  "dilated": ((1, 2), ((3, 0), (1, 2)), (2, 3)),
}


@pytest.mark.parametrize("dead", [-0.0, 0.0])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_the_dense_ones(case, dead):
  strides, padding, dilation = CASES[case]
  kernel, mask = _kernel(dead=dead)
  x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 9, 8, 64)), jnp.float32)

  def out(conv):
    return lambda x, w: conv(
      x, w, strides, padding, rhs_dilation=dilation, dimension_numbers=NUMBERS
    )

  loss = lambda conv: lambda x, w: jnp.sum(jnp.sin(out(conv)(x, w)))
  dense = jax.lax.conv_general_dilated
  with _record.recording() as entries:
    y = jax.jit(out(CONV))(x, kernel)
    jax.effects_barrier()
  live = int(mask.sum()) // 1024
  assert entries[0]["runs"] == [(live, live if np.signbit(dead) else mask.size // 1024)]
  _close(y, out(dense)(x, kernel))
  dx, dw = jax.jit(jax.grad(loss(CONV), (0, 1)))(x, kernel)
  want_x, want_w = jax.grad(loss(dense), (0, 1))(x, kernel)
  _close(dx, want_x)
  _close(dw, np.where(mask, want_w, 0.0) if np.signbit(dead) else want_w)


def test_second_derivatives():
  kernel, mask = _kernel()
  x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 6, 6, 64)), jnp.float32)

  def second(conv):
    out = lambda x, w: jnp.sum(
      jnp.sin(conv(x, w, (2, 1), "SAME", dimension_numbers=NUMBERS))
    )
    inner = lambda x, w: sum(jnp.sum(jnp.cos(g)) for g in jax.grad(out, (0, 1))(x, w))
    return jax.grad(inner, (0, 1))

  masked = lambda x, w, *rest, **keywords: jax.lax.conv_general_dilated(
    x, jnp.where(mask, w, jnp.zeros_like(w)), *rest, **keywords
  )
  got, want = jax.jit(second(CONV))(x, kernel), second(masked)(x, kernel)
  _close(got[0], want[0])
  _close(np.where(mask, got[1], 0.0), want[1])


def test_flax_layers():
  kernel, _ = _kernel((3, 3))
  x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 6, 64)), jnp.float32)
  layer = nn.Conv(96, (3, 3), strides=2, conv_general_dilated=CONV)
  params = {"params": {"kernel": kernel, "bias": jnp.ones(96)}}
  with _record.recording() as entries:
    y = jax.jit(layer.apply)(params, x)
    jax.effects_barrier()
  plain = layer.clone(conv_general_dilated=jax.lax.conv_general_dilated)
  _close(y, plain.apply(params, x))
  assert len(entries[0]["runs"]) == 1
  conv = nnx.Conv(
    64, 96, (3, 3), strides=2, rngs=nnx.Rngs(0), conv_general_dilated=CONV
  )
  conv.kernel[...] = kernel
  conv.bias[...] = jnp.ones(96)
  _close(conv(x), y)


@pytest.mark.parametrize(
  ("keywords", "reason"),
  [
    ({"feature_group_count": 2}, "groups"),
    ({"lhs_dilation": (2, 2)}, "dilated"),
    ({"padding": ((-1, 1), (0, 0))}, "negative"),
    ({"dimension_numbers": ("NCHW", "OIHW", "NCHW")}, "last"),
    ({"preferred_element_type": jnp.float64}, "dtypes"),
  ],
)
def test_other_convolutions_are_dense(keywords, reason):
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  x, kernel = normal(2, 64, 64, 64), normal(3, 3, 64, 64)
  if keywords.get("feature_group_count"):
    kernel = kernel[:, :, :32]
  if keywords.get("dimension_numbers"):
    kernel = kernel.transpose(3, 2, 0, 1)
  exact = {"padding": ((0, 0), (0, 0)), "dimension_numbers": NUMBERS}
  keywords = exact | keywords
  with jax.enable_x64("preferred_element_type" in keywords):
    shapes = []
    with _record.recording() as entries:
      for conv in (CONV, jax.lax.conv_general_dilated):
        apply = lambda x, w, conv=conv: conv(x, w, (1, 1), **keywords)
        shapes.append(jax.eval_shape(apply, x, kernel))
  assert shapes[0] == shapes[1]
  assert reason in entries[0]["reason"]
