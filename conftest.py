"""Every test and doctest runs strict, on eight CPU devices."""

import gc
import json
import os
import pathlib
import resource
import subprocess
import sys

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

_MEMORY_LIMIT = pytest.StashKey[float]()  # in bytes; see pytest_runtest_teardown
ROOT = pathlib.Path(__file__).resolve().parent
# Runs each command of its input in a fork, after importing once what takes seconds. No
# computation has started a thread by then; freezing spares the forks copies of memory.
_FORKS = """
import gc, json, os, runpy, sys
from sparsejax import training
from sparsejax.experiments import command_line
gc.freeze()
for line in sys.stdin:
  command, out, err = json.loads(line)
  child = os.fork()
  if child:
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    continue
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  for number, file in ((1, out), (2, err)):
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
  if command[0] == "-m":
    sys.argv = command[1:]
    runpy.run_module(command[1], run_name="__main__", alter_sys=True)
  else:
    sys.argv = command
    sys.path[0] = os.path.dirname(command[0])
    runpy.run_path(command[0], run_name="__main__")
  break
"""

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


def _peak_memory():
  """Returns the most memory that this process has had, in bytes."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else 1024 * peak


def pytest_runtest_teardown(item, nextitem):
  """Frees compiled programs between modules, or a process would grow to 5 GB.

  The next programs use the freed memory, so the limit is rarely reached again.
  """
  stash = item.config.stash
  between = nextitem is None or nextitem.path != item.path
  if between and (peak := _peak_memory()) > stash.get(_MEMORY_LIMIT, 1.5 * 2**30):
    jax.clear_caches()
    gc.collect()
    stash[_MEMORY_LIMIT] = peak + 2**26


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


@pytest.fixture(scope="session")
def run_script(tmp_path_factory):
  """Runs `python *command` in the root of the repository, as `subprocess.run` does."""
  folder = tmp_path_factory.mktemp("scripts")
  out, err = folder / "out", folder / "err"
  with subprocess.Popen(
    [sys.executable, "-c", _FORKS],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as server:

    def run(*command):
      server.stdin.write(json.dumps([command, str(out), str(err)]) + "\n")
      server.stdin.flush()
      code = int(server.stdout.readline())
      return subprocess.CompletedProcess(
        command, code, out.read_text(), err.read_text()
      )

    yield run
