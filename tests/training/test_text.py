"""A language model trains by the same loop, its experts with budgets of their own."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

import sparsejax as sj
from sparsejax import training
from sparsejax.training import _methods as methods
from sparsejax.training import _run as run_lib
from sparsejax.training import config as config_lib
from sparsejax.training import data as data_lib
from sparsejax.training.data import _text as text

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small(monkeypatch):
  """Two hundred windows of the text."""
  first, last = text.read()
  monkeypatch.setattr(text, "read", lambda: (first[:15_000], last[:3_000]))


def _config(variant, **fields):
  spec = importlib.util.spec_from_file_location(
    "lm", ROOT / "configs/lm_transformer.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  c = module.get_config(variant)
  c.model_kwargs = {"depth": 1, "width": 32, "heads": 2} | c.model_kwargs.to_dict()
  c.update(fields)
  return config_lib.complete(c)


def test_windows_hold_what_comes_next():
  dataset = data_lib.load("text")
  assert dataset.num_classes == 256
  assert dataset.train.images.dtype == np.uint8
  for split in dataset[:3]:
    np.testing.assert_array_equal(split.images[:, 1:], split.labels[:, :-1])


def test_all_variants_are_complete():
  for variant in methods.METHODS:
    for suffix in ("", "_moe"):
      assert _config(variant + suffix).method == variant


def test_images_only_options_are_refused():
  for fields, rule in (
    ({"augmentation": "shift"}, "augmentation must be 'none' for text; got 'shift'"),
    ({"centering": "pixel"}, "centering must be 'channel' for text; got 'pixel'"),
  ):
    with pytest.raises(training.ConfigError, match=rule):
      run_lib.prepare(_config("rigl", **fields))
  with pytest.raises(training.ConfigError, match="method must not be synflow"):
    run_lib.prepare(_config("synflow"))


def test_experts_train_on_a_mesh_each_with_its_budget(tmp_path):
  c = _config(
    "rigl_moe",
    num_epochs=4,
    update_every=3,
    warmup_epochs=1.0,
    mesh={"data": 2, "model": 4},
  )
  with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
    result = training.train_and_evaluate(c, tmp_path, verbose=False)
  masks = run_lib.named(sj.masks(result.state.opt_state))
  kernels = {"attention1/query/kernel", "attention1/out/kernel", "experts1/up"}
  assert kernels < set(masks)
  assert not any("gate" in name or "embed" in name for name in masks)
  up = masks["experts1/up"]
  assert up.sharding.spec[0] == "model"
  counts = np.asarray(jax.device_get(up)).sum((1, 2))
  assert set(counts.tolist()) == {counts[0]}  # equal shapes, equal budgets
  assert counts.shape == (4,)
  assert result.test_loss[0] < np.log(256)
