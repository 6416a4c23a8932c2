"""Supermasks through the training loop, as configs/*_supermask.py describe them."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

import sparsejax as sj
from sparsejax import supermasks, training
from sparsejax.training import _errors as errors
from sparsejax.training import _run as run
from sparsejax.training import config as config_lib
from sparsejax.training import config as supermask

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = ["mnist_lenet300", "mnist_lenet5", "cifar10_conv"]


def digits(variant, **fields):
  config = training.default_config()
  config.update(model_kwargs={}, batch_size=64, num_epochs=2, validation_fraction=0.0)
  supermask.use_variant(config, variant)
  config.model_kwargs.features = (32,)
  config.update(fields)
  return config


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_have_variants(name):
  file = ROOT / "configs" / f"{name}_supermask.py"
  spec = importlib.util.spec_from_file_location(file.stem, file)
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  assert f"--config=configs/{file.name} \\\n" in module.__doc__
  plain = config_lib.complete(module.get_config())
  assert (plain.method, plain.density) == ("edge_popup", 0.5)
  assert plain.model_kwargs["initialization"] == "signed_kaiming_constant"
  other = module.get_config("0.3,scaled,kaiming_normal,bernoulli")
  other = config_lib.complete(other)
  assert (other.method, other.density) == ("bernoulli_supermask", 0.3)
  assert other.model_kwargs["initialization"] == "kaiming_normal"
  assert other.model_kwargs["initialization_kwargs"] == {"density": 0.3}
  for depth in (2, 4, 6, 8) if name == "cifar10_conv" else ():
    deep = config_lib.complete(module.get_config(f"0.3,conv{depth}"))
    assert (deep.model, deep.density) == (f"conv{depth}", 0.3)


@pytest.mark.parametrize(
  "variant", ["0.4", pytest.param("bernoulli", marks=pytest.mark.slow)]
)
def test_masks_are_trained_and_weights_are_not(variant, tmp_path):
  config = digits(variant)
  if variant == "bernoulli":
    config.learning_rate = 50.0
  result = training.train_and_evaluate(config, tmp_path / "run", verbose=False)
  start = run.prepare(config).program.init(np.array([0], np.int32))
  assert supermasks.weights_hash(result.state.params) == (
    supermasks.weights_hash(start.params)
  )
  before, after = (sj.masks(s.opt_state) for s in (start, result.state))
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
  assert all(jax.tree.leaves(moved))
  if variant == "0.4":
    live = jax.tree.map(lambda m: int(m.sum()), after)
    assert jax.tree.leaves(live) == [round(0.4 * 64 * 32), round(0.4 * 32 * 10)]
  assert result.test_accuracy[0] > 0.6  # chance is 0.1


@pytest.mark.parametrize(
  ("variant", "match"),
  [
    ("0", r"the fraction kept must be inside \(0, 1\).*got 0"),
    ("1.0", r"the fraction kept must be inside \(0, 1\).*got 1.0"),
    ("kaiming", "variant must be words of signed_constant, .*; got 'kaiming'"),
  ],
)
def test_bad_variants_are_named(variant, match):
  with pytest.raises(errors.ConfigError, match=match):
    digits(variant)


@pytest.mark.parametrize(
  ("density", "match"), [(0.0, r"in \(0, 1\]; got 0"), (1.0, r"inside \(0, 1\).*got 1")]
)
def test_bad_densities_are_named_before_any_work(density, match, tmp_path):
  with pytest.raises(errors.ConfigError, match=match):
    training.train_and_evaluate(digits("0.5", density=density), tmp_path / "run")
