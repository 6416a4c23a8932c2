"""The guides' code runs as it stands there."""

import contextlib
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj
from sparsejax import training
from sparsejax.training import METHODS
from sparsejax.training import _metrics as metrics

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


def test_logging(monkeypatch, tmp_path):
  """The guide's writers take what a run passes to them."""
  logged, calls = [], []

  class Run(contextlib.AbstractContextManager):
    def __exit__(self, *error):
      return None

    def log(self, values, step):
      logged.append((step, values))

  class CluWriter:
    write_scalars = write_histograms = write_images = lambda self, *args: None

    def close(self):
      calls.append("closed")

  wandb = types.SimpleNamespace(init=lambda **_: Run(), Histogram=len, Image=np.shape)
  clu = types.ModuleType("clu")
  clu.metric_writers = types.SimpleNamespace(
    create_default_writer=lambda folder: CluWriter()
  )
  monkeypatch.setitem(sys.modules, "wandb", wandb)
  monkeypatch.setitem(sys.modules, "clu", clu)

  def train_and_evaluate(config, workdir, writers):
    with metrics.Writer(tmp_path, 0, writers=writers) as writer:
      writer.write(1, {"train_loss": 2.0, "live": {"a/kernel": 3}})
      writer.write_masks(1, {"a/kernel": np.eye(2, dtype=bool)})
    calls.append(type(writers[0]).__name__)

  monkeypatch.setattr(training, "train_and_evaluate", train_and_evaluate)
  names = {}
  for block in _BLOCK.findall((ROOT / "docs/how_to/logging.md").read_text()):
    exec(compile(block, "docs/how_to/logging.md", "exec"), names)
  assert calls == ["Worst", "CluWriter", "closed", "WandbWriter"]
  assert (names["worst"].step, names["worst"].loss) == (1, 2.0)
  assert logged == [
    (1, {"train_loss": 2.0, "live/a/kernel": 3.0}),
    (1, {"layer_densities": 1}),
    (1, {"masks/a/kernel": (2, 2, 1)}),
  ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "transformer", "choosing"])
def test_tutorials(name):
  """Each is one program, as a reader would run it: in a process of its own."""
  page = (ROOT / f"docs/tutorials/{name}.md").read_text()
  code = "\n".join(_BLOCK.findall(page))
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
  )
  assert done.returncode == 0, done.stderr


def test_methods_have_one_name_and_need_what_the_readme_says():
  """The table's names are those of `sj` and of the configs; swapping is tried."""
  text = (ROOT / "README.md").read_text()
  table = text[text.index("| when the masks") :].split("\n\n")[0].splitlines()[2:]
  rows = {row.split("|")[1].strip(): row.split("|")[2] for row in table}
  named = {when: re.findall(r"`(\w+)`", names) for when, names in rows.items()}
  in_loss = named["in your own loss"]
  everywhere = [name for names in named.values() for name in names]
  assert len(everywhere) == len(set(everywhere))
  assert all(hasattr(sj, name) for name in everywhere)
  assert set(everywhere) - set(in_loss) == set(METHODS) - {"dense"}
  params = {"kernel": jnp.ones((64, 10))}
  nothing, later = {"update_every": 500}, {"end_step": 1000}
  for when, extra in (("during training", nothing), ("from dense to sparse", later)):
    for name in named[when]:
      tx = getattr(sj, name)(optax.sgd(0.1, momentum=0.9), density=0.05, **extra)
      assert jax.tree.leaves(jax.eval_shape(tx.init, params)), name
