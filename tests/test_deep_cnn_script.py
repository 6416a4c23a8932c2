"""Runs of scripts/deep_cnn.py side by side are those runs alone."""

import functools
import importlib
import pathlib

import numpy as np
import pytest

SCRIPTS = pathlib.Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture
def deep_cnn(monkeypatch):
  monkeypatch.syspath_prepend(str(SCRIPTS))
  return importlib.import_module("_deep_cnn")


@pytest.mark.slow
def test_side_by_side_is_one_by_one(deep_cnn, tmp_path):
  case = functools.partial(deep_cnn.Case, depth=3, dataset="digits", steps=4, batch=4)
  sparse = {"kernel_init": "sparse_orthogonal", "method": "support", "density": 0.25}
  runs = [(case("readout", trained="readout"), 2), (case("sparse", **sparse), 1)]
  together = deep_cnn.train(runs, "", tmp_path / "together")
  [alone] = deep_cnn.train(runs[1:], "", tmp_path / "alone")
  assert alone["rate"] == together[1]["rate"]
  np.testing.assert_allclose(alone["loss"], together[1]["loss"], rtol=1e-5)
  assert deep_cnn.record_path(tmp_path / "alone", *runs[1]).exists()
  assert together[0]["loss"] != together[1]["loss"]
  assert together[0]["rate"] == 0
  # What is finished is not done again.
  assert deep_cnn.train(runs, "", tmp_path / "together") == []


def test_what_moves_its_masks_goes_alone(deep_cnn, tmp_path):
  runs = [
    (deep_cnn.Case(m, 3, "digits", method=m, density=0.5), 0) for m in ("", "rigl")
  ]
  with pytest.raises(ValueError, match="cannot go side by side"):
    deep_cnn.train(runs, "", tmp_path)
