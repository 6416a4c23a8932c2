"""Configs whose products skip dead blocks."""

import chex
import jax
import numpy as np
import pytest

import sparsejax as sj
from sparsejax import training
from sparsejax.ops import _block_dot
from sparsejax.training import _run as run_lib

FIELDS = {
  "dataset": "digits",
  "model": "mlp",
  "model_kwargs": {"features": (64, 64)},
  "method": "rigl",
  "structure": "block",
  "block": 32,
  "density": 0.3,
  "batch_size": 64,
  "num_epochs": 2,
  "update_every": 8,
}


def test_a_sparse_run_is_the_dense_run(tmp_path, monkeypatch):
  monkeypatch.setattr(_block_dot, "live_share", lambda *args: 0.5)
  dense, sparse = (
    training.train_and_evaluate(
      FIELDS | {"execution": execution}, tmp_path / execution, verbose=False
    )
    for execution in ("dense", "sparse")
  )
  masks = [sj.masks(run.state.opt_state) for run in (dense, sparse)]
  # The kernels of whole blocks, 64 x 64 each; not the last one, of ten outputs.
  assert [m.shape for m in jax.tree.leaves(masks[0])] == [(64, 64), (64, 64)]
  chex.assert_trees_all_equal(*masks)
  np.testing.assert_allclose(dense.test_loss, sparse.test_loss, rtol=1e-3)


def test_a_run_keeps_two_of_four_inputs(tmp_path):
  fields = FIELDS | {"structure": "2:4", "density": 0.5, "num_steps": 20}
  result = training.train_and_evaluate(fields, tmp_path, verbose=False)
  masks = jax.tree.leaves(sj.masks(result.state.opt_state))
  assert [m.shape for m in masks] == [(64, 64), (64, 64), (64, 10)]
  for mask in masks:
    np.testing.assert_array_equal(mask.reshape(16, 4, -1).sum(1), 2)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"structure": "2:4"}, "density must be 0.5 with structure='2:4'; got 0.3"),
    ({"structure": "4:2", "density": 0.5}, "structure must be one of any, block, or N"),
    ({"method": "snip", "structure": "1:2", "density": 0.5}, "structure must be any"),
    ({"execution": "fast"}, "execution must be one of dense, sparse"),
    ({"execution": "sparse", "structure": "any"}, "structure must be block"),
    ({"structure": "blocks"}, "structure must be one of any, block"),
    ({"method": "top_kast"}, "structure must be any for top_kast"),
    ({"method": "snip"}, "structure must be any for snip"),
    ({"block": 128}, "where must select"),
    (
      {"execution": "sparse", "model": "vanilla_cnn", "model_kwargs": {}},
      "execution must be dense",
    ),
  ],
)
def test_bad_fields(fields, message):
  with pytest.raises(training.ConfigError, match=message):
    run_lib.prepare(FIELDS | fields)
