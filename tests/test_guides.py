"""The guides' code runs as it stands there."""

import pathlib
import re

import jax
import numpy as np

import sparsejax as sj

ROOT = pathlib.Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def test_adding_a_method():
  guide = (ROOT / "docs/adding_a_method.md").read_text()
  code = "\n".join(_BLOCK.findall(guide))
  assert len(code.splitlines()) < 40
  names = {}
  exec(compile(code, "docs/adding_a_method.md", "exec"), names)
  tests = [f for name, f in names.items() if name.startswith("test_")]
  assert tests
  for test in tests:
    test()


def test_readme():
  """Its loop runs when pasted, from a first gradient that is sparse already."""
  first, *others = _BLOCK.findall((ROOT / "README.md").read_text())
  names = {}
  before, step = first.split("@jax.jit")
  exec(compile(before, "README.md", "exec"), names)
  start, mask = names["params"]["kernel"], sj.masks(names["opt_state"])["kernel"]
  assert int(mask.sum()) == 32  # round(0.05 * 640)
  assert not np.any(np.asarray(start)[~np.asarray(mask)])
  for block in ("@jax.jit" + step, *others):
    exec(compile(block, "README.md", "exec"), names)
  end = names["params"]["kernel"]
  assert not np.any(np.asarray(end)[~np.asarray(mask)])
  loss, batch = names["loss"], names["batch"]
  assert loss({"kernel": end}, batch) < loss({"kernel": start}, batch)
  assert jax.tree.leaves(sj.masks(names["tx"].init(names["params"])))
