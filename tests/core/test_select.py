"""`select` is `jnp.where`, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.core._select import select


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32"])
def test_select_is_where_bit_for_bit(dtype):
  odd = [0.0, -0.0, jnp.inf, -jnp.inf, jnp.nan, 1e-40, 1.5, -2.0]
  on = jnp.array(odd).astype(dtype)
  off = jnp.flip(on)
  words = {2: jnp.uint16, 4: jnp.uint32}[on.dtype.itemsize]
  bits = lambda x: np.asarray(jax.lax.bitcast_convert_type(x, words))
  for flags in (0b10110010, 0b01001101, 0, 0b11111111):
    mask = jnp.array([bool(flags >> i & 1) for i in range(8)])
    for run in (select, jax.jit(select)):
      assert run(mask, on, off).dtype == on.dtype
      np.testing.assert_array_equal(
        bits(run(mask, on, off)), bits(jnp.where(mask, on, off))
      )


def test_select_has_the_derivatives_of_where():
  mask, x = jnp.array([True, False]), jnp.array([2.0, 3.0])
  loss = lambda on, off: jnp.sum(select(mask, on**2, off**3))
  d_on, d_off = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, x)
  np.testing.assert_array_equal(d_on, [4.0, 0.0])
  np.testing.assert_array_equal(d_off, [0.0, 27.0])
  batched = jax.vmap(select, (0, None, None))(jnp.array([mask, ~mask]), x, -x)
  np.testing.assert_array_equal(batched, [[2.0, -3.0], [-2.0, 3.0]])
