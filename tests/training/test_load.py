"""`load_run`: a trained network back from its directory."""

import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj
from scripts import latency
from scripts.benchmarks import compaction
from scripts.reproduce import networks
from sparsejax.training import _checkpoint as checkpoint
from sparsejax.training import _errors as errors
from sparsejax.training import _run as run_lib
from sparsejax.training import config as config_lib
from sparsejax.training import data, load_run, train_and_evaluate

pytestmark = pytest.mark.usefixtures("fast")


def _files(path):
  return {p: p.stat().st_mtime_ns for p in path.rglob("*")}


def _accuracy(run):
  test = data.load("digits").test
  images = run.normalize(test.images)
  logits = run.apply(run.params, run.model_state, images)
  return np.mean(np.argmax(logits, -1) == test.labels)


def _untrained(path, prepare, config):
  """A directory with a checkpoint of a run's initial state, and that state."""
  run = prepare(config)
  state = run.program.init(run.seeds)
  stamp = config_lib.to_json(run.config)
  (path / "config.json").write_text(json.dumps(stamp))
  checkpoints = checkpoint.Checkpoints(path, stamp)
  checkpoints.save(0, state, {"seconds": 0.0})
  checkpoints.close()
  return state


@pytest.fixture(scope="module")
def trained(prepared, two_seeds, tmp_path_factory):
  path = tmp_path_factory.mktemp("runs") / "two"
  with pytest.MonkeyPatch.context() as m:
    m.setattr(run_lib, "prepare", prepared)
    return path, train_and_evaluate(two_seeds, path, verbose=False)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_loaded_network_computes_what_was_trained(trained, seed, caplog):
  path, result = trained
  before = _files(path)
  run = load_run(path, seed_index=seed)
  assert _files(path) == before
  assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == []
  assert (run.step, run.config.seed, run.image_shape) == (160, 3, (8, 8, 1))
  expected = jax.tree.map(lambda x: x[seed], result.state.params)
  chex.assert_trees_all_equal(run.params, expected)
  sj.check_sparse(run.params, run.opt_state)
  chex.assert_trees_all_equal(run.masks, sj.masks(run.opt_state))
  np.testing.assert_allclose(_accuracy(run), result.test_accuracy[seed], atol=1e-6)


def test_a_given_step_is_loaded(trained):
  path, _ = trained
  early, late = load_run(path, step=120), load_run(path)
  assert (early.step, late.step) == (120, 160)
  kernels = (run.params["dense1"]["kernel"] for run in (early, late))
  assert np.any(np.not_equal(*kernels))
  with pytest.raises(errors.CheckpointError, match=r"step must be .* 120, 160; got 5"):
    load_run(path, step=5)
  with pytest.raises(errors.ConfigError, match=r"seed_index must be in \[0, 2\)"):
    load_run(path, seed_index=2)


def test_a_damaged_checkpoint_is_passed_over_and_left_in_place(trained, tmp_path):
  path = tmp_path / "copy"
  shutil.copytree(trained[0], path)
  for file in (path / "checkpoints" / "160" / "state").rglob("*"):
    if file.is_file():
      file.write_bytes(b"")
  assert load_run(path).step == 120
  assert (path / "checkpoints" / "160").is_dir()
  with pytest.raises(errors.CheckpointError, match="of step 160 is damaged"):
    load_run(path, step=160)


def test_masks_of_the_forward_pass_are_applied(tmp_path, prepared, tiny):
  """The params of a supermask stay dense; a loaded network has the masked ones."""
  config = {**tiny, "method": "straight_through"}
  state = _untrained(tmp_path, prepared, config)
  run = load_run(tmp_path)
  mask, kernel = (tree["dense1"]["kernel"] for tree in (run.masks, run.params))
  trained = state.params["dense1"]["kernel"]
  assert np.all(np.asarray(trained) != 0)
  np.testing.assert_array_equal(kernel, np.where(mask, trained, 0))
  np.testing.assert_array_equal(run.state.params["dense1"]["kernel"], trained)


def test_a_run_on_a_mesh_is_loaded_on_one_device(tmp_path, prepared, pruned):
  config = {**pruned, "mesh": {"data": 2, "model": 2}}
  state = _untrained(tmp_path, prepared, config)
  run = load_run(tmp_path)
  assert len(run.params["dense1"]["kernel"].sharding.device_set) == 1
  chex.assert_trees_all_equal(run.params, state.params)


@pytest.mark.parametrize(
  ("files", "match"),
  [
    ({}, "must be the directory of a run, with a config.json"),
    ({"config.json": "{"}, "must be the directory of a run, with a config.json"),
    ({"config.json": "{}"}, "is of something else"),
    ({"config.json": '{"dataset": "digits", "growth_rounds": 3}'}, "load_milestone"),
    (
      {"config.json": '{"train.seed": 3}', "dense/level_00/level.json": "{}"},
      "is of a lottery ticket experiment",
    ),
  ],
)
def test_what_is_no_run_is_refused_by_name(tmp_path, files, match):
  for name, text in files.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
  with pytest.raises(errors.WorkdirError, match=match):
    load_run(tmp_path)


def test_a_run_without_a_checkpoint_is_refused(tmp_path, pruned):
  stamp = config_lib.to_json(config_lib.complete(pruned))
  (tmp_path / "config.json").write_text(json.dumps(stamp))
  with pytest.raises(errors.CheckpointError, match="there is no checkpoint in"):
    load_run(tmp_path)
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(errors.CheckpointError, match="there is no checkpoint in"):
    load_run(tmp_path)
  assert not any((tmp_path / "checkpoints").iterdir())


def test_scripts_read_and_compact_the_network(trained):
  path, _ = trained
  network = networks.load(path)
  assert (network.name, network.image_shape) == ("mlp", (8, 8, 1))
  assert network.masks["dense1"]["bias"] is None
  mask = np.array(network.masks["dense1"]["kernel"])
  mask[:, :8] = False  # half of the units are constants
  masks = jax.tree.map(lambda _: None, network.params)
  masks["dense1"]["kernel"] = jnp.asarray(mask)
  images = jnp.asarray(np.random.default_rng(1).random((5, 8, 8, 1), np.float32))
  rows = compaction.measure(
    "net", network.apply, network.params, masks, images, rounds=1, repeats=1
  )
  found = {row["metric"]: row["mean"] for row in rows}
  assert found["max_abs_difference"] < 1e-4
  assert found["dense_flops_ratio"] >= 2
  assert found["estimated_speedup_optimal_sparse"] > 4
  assert {"speedup_scan", "speedup_batch128", "speedup_call"} <= set(found)
  with pytest.raises(errors.WorkdirError, match="milestone must be one of the 0"):
    networks.load(path, 0)


def test_latency_of_a_run_is_printed_per_batch_size(trained, monkeypatch, capsys):
  path, _ = trained
  arguments = ["latency.py", str(path), "--batches=1,2", "--rounds=2", "--seed-index=1"]
  monkeypatch.setattr("sys.argv", arguments)
  assert latency.main() == 0
  lines = [line.split() for line in capsys.readouterr().out.splitlines()]
  rows = [words[:2] for words in lines if words[:1] in (["1"], ["2"])]
  names = ("dense", "masked", "deployed")
  assert rows == [[batch, name] for batch in "12" for name in names]
  assert [words[-1] for words in lines if words[1:2] == ["masked"]] == ["1.00"] * 2
  monkeypatch.setattr("sys.argv", ["latency.py", str(path / "none")])
  assert latency.main() == 1
  assert "workdir must be the directory of a run" in capsys.readouterr().err
