"""A mask update is bit for bit the same on one device, eight, and two processes."""

import functools
import importlib.util
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent


def _load():
  spec = importlib.util.spec_from_file_location("w", HERE / "two_processes.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


worker = _load()


@functools.cache
def _expected(method):
  return jax.device_get(worker.masks(method))


@pytest.mark.parametrize("layout", list(worker.LAYOUTS))
@pytest.mark.parametrize(
  "name",
  [
    m if m == "sparse_momentum" else pytest.param(m, marks=pytest.mark.slow)
    for m in worker.METHODS
  ],
)
def test_eight_devices(name, layout):
  got = jax.device_get(worker.masks(name, worker.LAYOUTS[layout]))
  jax.tree.map(np.testing.assert_array_equal, got, _expected(name))


def run_processes(command, number, devices, timeout=300):
  """Runs a command in several processes, `{id}` and `{port}` filled in, to the end."""
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
  # All pipes are read at once: a full one would stop its writer.
  running = [
    subprocess.Popen(
      [part.format(id=i, port=port) for part in command],
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(number)
  ]
  try:
    outputs = [process.communicate(timeout=timeout)[0] for process in running]
  finally:
    for process in running:
      process.kill()
  return [(p.returncode, out) for p, out in zip(running, outputs, strict=True)]


@pytest.mark.slow
def test_two_processes_of_four_devices(tmp_path):
  command = [sys.executable, str(HERE / "two_processes.py"), "{id}", "2", "{port}"]
  for code, output in run_processes([*command, str(tmp_path)], 2, 4):
    assert code == 0, output
  for process in range(2):
    with np.load(tmp_path / f"{process}.npz") as found:
      for method in worker.METHODS:
        masks, budgets = _expected(method)
        for layout in worker.LAYOUTS:
          for leaf in ("a", "b", "stacked"):
            name = f"{method} {layout} {leaf}"
            np.testing.assert_array_equal(found[name], masks[leaf])
            np.testing.assert_array_equal(found[f"{name} budget"], budgets[leaf])
