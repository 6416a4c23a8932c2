"""Every test and doctest runs strict, on eight CPU devices."""

import os

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update(
  "jax_num_cpu_devices", int(os.environ.get("SPARSEJAX_TEST_DEVICES", "8"))
)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
