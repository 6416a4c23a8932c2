"""A mask update is bit for bit the same on one device, eight, and two processes."""

import functools
import importlib.util
import pathlib
import sys

import chex
import jax
import numpy as np
import pytest

from scripts.reliability import processes

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


@pytest.mark.parametrize(
  ("name", "layout"),
  [
    (m, layout)
    if m == "sparse_momentum" and layout == "fsdp"
    else pytest.param(m, layout, marks=pytest.mark.slow)
    for m in worker.METHODS
    for layout in worker.LAYOUTS
  ],
)
def test_eight_devices(name, layout):
  got = jax.device_get(worker.masks(name, worker.LAYOUTS[layout]))
  chex.assert_trees_all_equal(got, _expected(name))


@pytest.mark.slow
def test_two_processes_of_four_devices(tmp_path):
  command = [sys.executable, str(HERE / "two_processes.py"), str(tmp_path)]
  for code, output in processes.run(command, 2, 4, timeout=1_200):
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
