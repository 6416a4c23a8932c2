import importlib.util
import io
import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from sparsejax.training import _run as run_lib
from sparsejax.training import config as config_lib
from sparsejax.training.data import _stream as stream_lib


@pytest.fixture(scope="session")
def prepared():
  """`run.prepare` that compiles each config once for all tests."""
  prepare, runs = run_lib.prepare, {}

  def cached(config):
    name = json.dumps(config_lib.to_json(config_lib.complete(config)), sort_keys=True)
    if name not in runs:
      runs[name] = prepare(config)
    return runs[name]

  return cached


@pytest.fixture
def fast(prepared, monkeypatch):
  monkeypatch.setattr(run_lib, "prepare", prepared)


@pytest.fixture(scope="session")
def tiny():
  """Four epochs of 40 steps that take a moment; the masks change at every tenth."""
  return {
    "dataset": "digits",
    "model": "mlp",
    "model_kwargs": {"features": (16,)},
    "density": 0.3,
    "update_every": 10,
    "batch_size": 32,
    "num_epochs": 4,
    "log_every": 15,
    "checkpoint_every": 1,
  }


@pytest.fixture(scope="session")
def pruned(tiny):
  """The same by gradual pruning, which compiles in half the time."""
  return {**tiny, "method": "gradual_magnitude"}


@pytest.fixture(scope="session")
def two_seeds(pruned):
  return {**pruned, "num_seeds": 2, "seed": 3}


@pytest.fixture(scope="session")
def tfds_dir():
  """A TFDS folder with MNIST, from the environment or beside the checkout."""
  beside = pathlib.Path(__file__).parents[2] / ".." / "shared" / "data" / "tfds"
  for place in (os.environ.get("TFDS_DATA_DIR"), beside):
    if place and (pathlib.Path(place) / "mnist").is_dir():
      return str(pathlib.Path(place).resolve())
  pytest.skip("no prepared MNIST: set TFDS_DATA_DIR")


@pytest.fixture(scope="session")
def mock_stream():
  """Makes a stream of JPEGs of several sizes, whose mean brightness is their label."""

  def make(number, size=32, seed=0):
    rng = np.random.default_rng(seed)
    records = []
    for i in range(number):
      height, width = rng.integers(40, 80, 2)
      pixels = np.full((height, width, 3), 20 + 20 * (i % 10), np.uint8)
      file = io.BytesIO()
      Image.fromarray(pixels).save(file, "JPEG", quality=95)
      records.append({"image": file.getvalue(), "label": i % 10})
    return stream_lib.Stream(records, stream_lib.decoder(size), size)

  return make


@pytest.fixture
def imagenet_config():
  """`get_config` of configs/imagenet_resnet50.py."""
  file = pathlib.Path(__file__).parents[2] / "configs" / "imagenet_resnet50.py"
  spec = importlib.util.spec_from_file_location("imagenet_resnet50", file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config
