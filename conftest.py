"""Every test and doctest runs strict, on eight CPU devices."""

import gc
import os

# The tests spend nearly all their time in compiling, which these flags, read by jax and
# inherited by child processes, make three times as fast. With `XLA_FLAGS= pytest`
# programs are compiled as they are for users.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
  " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)

import jax
import pytest
from jax import monitoring

gc.disable()  # until the tests are collected: nothing of modules is garbage
jax.config.update("jax_platforms", "cpu")
jax.config.update(
  "jax_num_cpu_devices", int(os.environ.get("SPARSEJAX_TEST_DEVICES", "8"))
)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_finish():
  """Makes garbage collection rare, and exempts from it what is loaded by now."""
  gc.freeze()
  gc.set_threshold(50_000, 10, 10)
  gc.enable()


@pytest.fixture
def compilations():
  """Lists what is compiled from here on: one item per program."""
  found = []

  def listen(event, duration_secs, **_):
    if event.endswith("backend_compile_duration"):
      found.append(event)

  monitoring.register_event_duration_secs_listener(listen)
  yield found
  monitoring.unregister_event_duration_listener(listen)
