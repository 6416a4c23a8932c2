"""Vectorized runs of deep CNNs are the same as single ones."""

import functools

import jax
import numpy as np
import pytest

from scripts.reproduce.deep_cnn import cases, linear, training
from scripts.reproduce.deep_cnn.cases import Case
from sparsejax.training import data


@pytest.mark.slow
def test_side_by_side_is_one_by_one(tmp_path):
  case = functools.partial(Case, depth=3, dataset="digits", steps=4, batch=4)
  sparse = {"kernel_init": "sparse_orthogonal", "method": "support", "density": 0.25}
  runs = [(case("readout", trained="readout"), 2), (case("sparse", **sparse), 1)]
  together = training.train(runs, "", tmp_path / "together")
  [alone] = training.train(runs[1:], "", tmp_path / "alone")
  assert alone["rate"] == together[1]["rate"]
  np.testing.assert_allclose(alone["loss"], together[1]["loss"], rtol=1e-5)
  assert training.record_path(tmp_path / "alone", *runs[1]).exists()
  assert together[0]["loss"] != together[1]["loss"]
  assert together[0]["rate"] == 0
  # What is finished is not done again.
  assert training.train(runs, "", tmp_path / "together") == []


def test_what_moves_its_masks_goes_alone(tmp_path):
  runs = [(Case(m, 3, "digits", method=m, density=0.5), 0) for m in ("", "rigl")]
  with pytest.raises(ValueError, match="cannot be vectorized"):
    training.train(runs, "", tmp_path)


def test_linear_controls_are_tuned_on_images_that_they_do_not_see(monkeypatch):
  """Digits that pixels separate: a tuned rate, and a test of all test images."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 10, 300).astype(np.int32)
  images = np.zeros((300, 4, 4, 1), np.float32)
  images.reshape(300, 16)[np.arange(300), labels] = 4
  split = data.Split(images, labels)
  monkeypatch.setattr(linear, "VALIDATION", 100)
  flat = lambda x: x.reshape(len(x), -1)
  order = np.tile(rng.permutation(300), 2)
  found = linear.train(flat, split, split, order, steps=20, batch=16)
  assert found.test == 100
  assert len(found.validation) == len(linear.RATES)
  assert found.validation[linear.RATES.index(found.rate)] == max(found.validation)
  # The validation images count once only: 90 of the 100 have wrong labels.
  wrong = split._replace(labels=split.labels.copy())
  wrong.labels[order[200:290]] = (wrong.labels[order[200:290]] + 1) % 10
  found = linear.train(flat, wrong, split, order, steps=20, batch=16)
  assert found.test == 100
  assert max(found.validation) == 10


def test_a_trunk_of_linear_layers_gives_features_of_the_readout():
  """The read-out of the network itself, applied to the features, gives its logits."""
  control = linear.Control("x", "digits", depth=3)
  images = np.random.default_rng(0).normal(size=(7, 8, 8, 1)).astype(np.float32)
  features = linear.make_features(control, 5, lambda x: x, images[:1])(images)
  model = cases.make_model(Case("x", 3, "digits"))
  variables = model.init(jax.random.key(5), images[:1])
  readout = variables["params"]["readout"]
  wanted = np.asarray(model.apply(variables, images))
  got = features @ readout["kernel"] + readout["bias"][None]
  np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
