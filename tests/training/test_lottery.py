import functools
import importlib.util
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj
from sparsejax import lottery, models
from sparsejax.core._tree import path_string
from sparsejax.experiments import results
from sparsejax.experiments.lottery import _config as lottery_config
from sparsejax.experiments.lottery import _experiment as lottery_lib
from sparsejax.experiments.lottery import _instability as instability_lib
from sparsejax.experiments.lottery import _levels as lottery_levels
from sparsejax.experiments.lottery import _report as lottery_report
from sparsejax.experiments.lottery import _setup as setup_lib
from sparsejax.experiments.lottery import _start as lottery_start
from sparsejax.experiments.lottery._levels import Arm
from sparsejax.training import _errors as errors
from sparsejax.training import _progress as progress_lib

ROOT = pathlib.Path(__file__).parents[2]
TINY = {
  "train": {
    "dataset": "digits",
    "model": "mlp",
    "model_kwargs": {"features": (12,)},
    "learning_rate": 0.1,
    "lr_schedule": "cosine",
    "momentum": 0.0,
    "weight_decay": 0.0,
    "batch_size": 64,
    "num_epochs": 2,
    "num_seeds": 2,
  },
  "rounds": 2,
  "prune_fraction": 0.4,
  "prune_rates": {"dense2": 0.2},
  "rewind_step": 5,
  "controls": {"reinit": (2,), "random": (1,)},
  "one_shot_levels": (2,),
  "eval_every": 10,
  "measure_every": 20,
  "last_evaluations": 2,
}
SIZES = {"dense1/kernel": 64 * 12, "dense2/kernel": 120}


@pytest.fixture(scope="module")
def setup():
  return setup_lib.prepare(TINY)


SHOWN = []  # per training: the total of its progress, and the last step shown


class _Recorded(progress_lib.Progress):
  def __init__(self, total, done, verbose):
    super().__init__(total, done, verbose)
    SHOWN.append([total, done])

  def update(self, step, **fields):
    SHOWN[-1][1] = step
    return super().update(step, **fields)


@pytest.fixture(scope="module")
def whole(setup, tmp_path_factory):
  path = tmp_path_factory.mktemp("lottery")
  with pytest.MonkeyPatch.context() as m:
    m.setattr(setup_lib, "prepare", lambda config: setup)
    m.setattr(lottery_lib, "Progress", _Recorded)
    arms = lottery_lib.run_experiment(TINY, path, verbose=False)
  return path, arms


def test_progress_ends_at_its_total(whole):
  """The dense training too: 2 seeds, from the rewind step 5 to step 40."""
  assert [[70, 70]] * len(whole[1]) == SHOWN


@pytest.fixture
def fast(setup, monkeypatch):
  """The compiled parts of the one setup, under whatever config is asked for."""

  def prepare(config):
    c = lottery_config.complete(config)
    return setup._replace(config=c, stamp=lottery_config.to_json(c))

  monkeypatch.setattr(setup_lib, "prepare", prepare)


def _masks(setup, path, arm):
  like = jax.tree.map(lambda m: jax.ShapeDtypeStruct((2, *m.shape), bool), setup.masks)
  return lottery_levels.read_masks(path, arm, like)


def _weights(setup, path, arm):
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), setup.like
  )
  return lottery_levels.read_weights(path, arm, like)


def test_all_cells_are_there_in_their_order(whole):
  names = [f"{arm.kind} {arm.level}" for arm in whole[1]]
  assert names == [
    "dense 0",
    "ticket 1",
    "ticket 2",
    "one_shot 2",
    "random 1",
    "reinit 2",
  ]
  planned = lottery_lib.list_arms(lottery_config.complete(TINY))
  assert sorted(planned) == sorted(whole[1])


def test_levels_are_on_the_ladder(setup, whole):
  path, arms = whole
  steps = lottery.ladder(SIZES, 0.4, 2, {"dense2": 0.2})
  for arm in arms:
    live = lottery_levels.read_metrics(path, arm)["live"]
    for name, counts in live.items():
      expected = steps[arm.level][name]
      # In one go 1 - .6^2 of a layer is rounded once.
      assert counts == pytest.approx([expected] * 2, abs=arm.kind == "one_shot")
    weights = _weights(setup, path, arm)[0]
    masks = _masks(setup, path, arm)
    for name in ("dense1", "dense2"):
      dead = ~np.asarray(masks[name]["kernel"])
      assert (weights[name]["kernel"][dead] == 0).all()
  one, two = (_masks(setup, path, Arm("ticket", n)) for n in (1, 2))
  assert not bool((two["dense1"]["kernel"] & ~one["dense1"]["kernel"]).any())


def test_what_levels_start_from(setup, whole):
  path, _ = whole
  rewound = _weights(setup, path, lottery_start.REWIND)[0]
  initial = _weights(setup, path, lottery_start.INITIAL)[0]
  assert (rewound["dense1"]["kernel"] != initial["dense1"]["kernel"]).any()
  final = _weights(setup, path, Arm("ticket", 1))[0]
  ticket, control = Arm("ticket", 2), Arm("reinit", 2)
  (params, _), masks = lottery_start.start(setup, path, ticket)
  np.testing.assert_array_equal(params["dense1"]["kernel"], rewound["dense1"]["kernel"])
  np.testing.assert_array_equal(
    masks["dense1"]["kernel"], _masks(setup, path, ticket)["dense1"]["kernel"]
  )
  other = setup._replace(
    config=lottery_config.complete({**TINY, "restart": "fine_tune"})
  )
  (params, _), _ = lottery_start.start(other, path, ticket)
  np.testing.assert_array_equal(params["dense1"]["kernel"], final["dense1"]["kernel"])
  (params, _), _ = lottery_start.start(setup, path, control)
  new, live = (
    np.asarray(params["dense1"]["kernel"]),
    np.asarray(masks["dense1"]["kernel"]),
  )
  assert (new[~live] == 0).all()
  assert (new[live] != rewound["dense1"]["kernel"][live]).all()
  (params, _), shuffled = lottery_start.start(setup, path, Arm("random", 1))
  masks = _masks(setup, path, Arm("ticket", 1))
  new, old = shuffled["dense1"]["kernel"], masks["dense1"]["kernel"]
  assert new.sum((1, 2)).tolist() == old.sum((1, 2)).tolist()
  assert bool((new != old).any())
  np.testing.assert_array_equal(
    params["dense1"]["kernel"], np.where(new, rewound["dense1"]["kernel"], 0)
  )


@pytest.mark.parametrize(
  ("restart", "step"), [("rewind", 5), ("learning_rate", 5), ("fine_tune", 39)]
)
def test_the_schedule_that_tickets_are_trained_by(restart, step):
  """Gradients of one: the first update of plain SGD is minus the learning rate."""
  train = {**TINY["train"], "momentum": 0.0}
  setup = setup_lib.prepare({**TINY, "train": train, "restart": restart})
  params = jax.tree.map(lambda x: jnp.zeros(x.shape), setup.like[0])
  grads = jax.tree.map(jnp.ones_like, params)
  updates, _ = setup.restarted.update(grads, setup.restarted.init(params), params)
  expected = 0.1 * (1 + np.cos(np.pi * step / 40)) / 2
  assert setup.steps == 40
  rate = -float(updates["dense1"]["bias"][0])
  assert rate == pytest.approx(expected, rel=1e-4)


def test_metrics(whole):
  path, _ = whole
  metrics = lottery_levels.read_metrics(path, Arm("ticket", 1))
  assert metrics["steps"] == [10, 20, 30, 40]
  assert metrics["measured"] == [20, 30, 40]
  assert metrics["start"] == 5
  assert set(metrics["run"]) == set(results.RUN_KEYS)
  losses = np.array(metrics["validation_loss"])
  best = losses.argmin(1)
  assert metrics["early_stop"] == [metrics["steps"][i] for i in best]
  o = lottery_report.read(path)[Arm("ticket", 1)]  # last_evaluations is 2
  accuracy = np.array(metrics["measurements"]["test_accuracy"])
  np.testing.assert_allclose(o.final_accuracy, 100 * accuracy[:, -2:].mean(1))
  assert (o.accuracy > 30).all()


@pytest.mark.usefixtures("fast")
def test_it_goes_on_where_it_was_stopped(setup, whole, tmp_path):
  shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
  place = lottery_levels.folder(tmp_path, Arm("ticket", 2))
  before = _weights(setup, tmp_path, Arm("ticket", 2))
  kept = (tmp_path / "ticket" / "level_01" / "weights.npz").stat().st_mtime_ns
  (place / "level.json").unlink()
  lottery_lib.run_experiment(TINY, tmp_path, verbose=False)
  for a, b in zip(
    jax.tree.leaves(before),
    jax.tree.leaves(_weights(setup, tmp_path, Arm("ticket", 2))),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
  assert (tmp_path / "ticket" / "level_01" / "weights.npz").stat().st_mtime_ns == kept


@pytest.mark.usefixtures("fast")
def test_what_is_refused(whole, tmp_path):
  shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
  run = lambda config: lottery_lib.run_experiment(config, tmp_path, verbose=False)
  with pytest.raises(errors.WorkdirError, match=r"prune_fraction: 0\.4 -> 0\.5"):
    run({**TINY, "prune_fraction": 0.5})
  stamp = tmp_path / "ticket" / "level_01" / "level.json"
  good = stamp.read_text()
  stamp.write_text(json.dumps({**json.loads(good), "config": "0123"}))
  with pytest.raises(errors.WorkdirError, match="level_01 must be of this config"):
    run(TINY)
  stamp.write_text(good)
  masks = tmp_path / "ticket" / "level_01" / "masks.npz"
  whole_file = masks.read_bytes()
  masks.write_bytes(whole_file[:-9])
  with pytest.raises(
    errors.CheckpointError, match=r"masks.npz is not what was written"
  ):
    run(TINY)
  masks.write_bytes(whole_file)
  shutil.rmtree(tmp_path / "rewind" / "level_01")
  with pytest.raises(errors.CheckpointError, match=r"rewind point .* is missing"):
    run(TINY)


def test_layers_that_a_leaf_stacks_are_pruned_one_by_one():
  model = {"model": "vanilla_cnn", "model_kwargs": {"depth": 4, "channels": 4}}
  config = {"train": {**TINY["train"], **model}, "stacked": "trunk/kernel"}
  setup = setup_lib.prepare(config)
  init = jax.vmap(setup.init)(jax.random.split(jax.random.key(0), 2))
  params = jax.tree.map(np.array, init[0])
  # Weights of the first layer are the largest of all.
  trunk = params["trunk"]["kernel"]
  trunk[:, 0] *= 100
  masks = jax.tree.map(lambda m: jnp.ones((2, *m.shape), bool), setup.masks)
  pruned = lottery_start.prune_seeds(setup.config, params, params, masks)
  left = np.asarray(pruned["trunk"]["kernel"]).sum(axis=(2, 3, 4, 5))
  size = trunk[0, 0].size
  np.testing.assert_array_equal(left, size - round(0.2 * size))
  arm = Arm("random", 1)
  _, shuffled = lottery_start.control(setup, arm, (params, init[1]), pruned)
  found = np.asarray(shuffled["trunk"]["kernel"]).sum(axis=(2, 3, 4, 5))
  np.testing.assert_array_equal(found, left)


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"stacked": "nothing"}, "stacked must select at least one leaf"),
    ({"prune_fraction": 1.0}, r"prune_fraction must be in \(0, 1\); got 1.0"),
    ({"prune_rates": {"dense7": 0.1}}, "rates must match layers, got 'dense7'"),
    ({"rewind_step": 40}, "rewind_step must be below the 40 steps"),
    ({"restart": "again"}, "restart must be one of"),
    ({"controls": {"reinit": (0,)}}, "controls must be a dict of levels"),
    ({"controls": {"other": (1,)}}, "controls must be a dict of levels"),
    ({"criterion": "largest"}, "criterion must be one of"),
    ({"round": 3}, "did you mean 'rounds'"),
    ({"scope": "global"}, "prune_rates must be empty with scope 'global'"),
    ({"train": {**TINY["train"], "validation_fraction": 0.0}}, "find the early stop"),
    ({"train": {**TINY["train"], "dataset": "text"}}, "must be images that fit"),
  ],
)
def test_bad_configs(change, match):
  with pytest.raises(errors.ConfigError, match=match):
    setup_lib.prepare({**TINY, **change})


def _config(name):
  file = ROOT / "configs" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(name, file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


PRUNED = {
  "digits_lottery": ((8, 8, 1), {2: 3}),
  "mnist_lenet300_lottery": ((28, 28, 1), {2: 3}),
  "cifar10_conv2_lottery": ((32, 32, 3), {4: 2, 2: 3}),
  "cifar10_conv4_lottery": ((32, 32, 3), {4: 4, 2: 3}),
  "cifar10_conv6_lottery": ((32, 32, 3), {4: 6, 2: 3}),
  "cifar10_wrn10_lottery": ((32, 32, 3), {4: 9, 2: 1}),
  "cifar10_resnet20_lottery": ((32, 32, 3), {4: 19}),  # no shortcut, no output
}


@pytest.mark.parametrize("name", PRUNED)
def test_configs(name):
  """Each is complete, says how it is launched, and prunes the layers it should."""
  module = _config(name)
  assert f".py --config=configs/{name}.py" in module.__doc__
  shape, layers = PRUNED[name]
  for variant in getattr(module, "VARIANTS", (None,)):
    c = lottery_config.complete(module.get_config(*([variant] if variant else [])))
    model = models.create(c.train.model, **c.train.model_kwargs)
    images = jax.ShapeDtypeStruct((1, *shape), "float32")
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    dense = functools.partial(lottery.dense_masks, where=c.where or None)
    masks = jax.eval_shape(dense, params)
    ranks = [m.ndim for m in jax.tree.leaves(masks)]
    assert {r: ranks.count(r) for r in ranks} == layers
    sizes = {
      path_string(p): m.size for p, m in jax.tree_util.tree_leaves_with_path(masks)
    }
    if c.scope == "layer":
      lottery.ladder(sizes, c.prune_fraction, c.rounds, dict(c.prune_rates))


def test_a_fraction_that_would_empty_a_layer(setup, whole):
  path, _ = whole
  c = lottery_config.complete({**TINY, "prune_rates": {"dense2": 0.999}})
  with pytest.raises(errors.ConfigError, match="leave a live weight in every layer"):
    lottery_start.start(setup._replace(config=c), path, Arm("ticket", 1))


def test_frozen_values(setup, whole):
  """Pruned weights that stand at their first values, by Zhou et al.'s third action."""
  path, _ = whole
  c = lottery_config.complete({**TINY, "mask_zero": "init"})
  other = setup_lib.prepare(c)
  assert isinstance(other.restarted, optax.GradientTransformationExtraArgs)
  (params, _), masks = lottery_start.start(setup, path, Arm("ticket", 1))
  held = lottery_start.held(other, path, params, masks)
  initial = _weights(setup, path, lottery_start.INITIAL)[0]
  dead = ~np.asarray(masks["dense1"]["kernel"])
  np.testing.assert_array_equal(
    np.asarray(held["dense1"]["kernel"])[dead], initial["dense1"]["kernel"][dead]
  )
  assert sj.masks(other.restarted.init(jax.tree.map(lambda x: x[0], held)))


def test_report(whole, tmp_path):
  shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
  text = lottery_report.write(tmp_path)
  assert "ticket 2" in text
  assert "two seeds share" in text
  for name in ("accuracy", "last_accuracy", "early_stop", "pixels"):
    assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
  with pytest.raises(errors.WorkdirError, match="must hold levels that are done"):
    lottery_report.write(tmp_path / "nothing")


@pytest.mark.usefixtures("fast")
def test_instability(whole, tmp_path):
  shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
  run = lambda *a, **kw: instability_lib.run_instability(
    TINY, tmp_path, *a, verbose=False, **kw
  )
  found = run([0, 39])
  assert found[0].shape == (2,)
  # One step apart two networks are one.
  assert (np.abs(found[39]) < 2).all()
  metrics = json.loads((tmp_path / "instability_00/level_39/metrics.json").read_text())
  assert np.shape(metrics["errors"]) == (2, 30)
  assert run([5], level=1)[5].shape == (2,)
  with pytest.raises(errors.ConfigError, match=r"steps must be rewind_step \(5\)"):
    run([0], level=1)
  with pytest.raises(errors.ConfigError, match=r"steps must be in \[0, 40\); got 40"):
    run([40])
