"""Vectorized runs of deep CNNs are the same as single ones."""

import functools

import numpy as np
import pytest

from scripts.reproduce.deep_cnn import training
from scripts.reproduce.deep_cnn.cases import Case


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
  with pytest.raises(ValueError, match="cannot go side by side"):
    training.train(runs, "", tmp_path)
