"""A synthesis on the digits: its path, its files, and that it resumes."""

import contextlib
import importlib.util
import itertools
import json
import math
import os
import pathlib
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj
from scripts.reproduce import networks
from sparsejax import growth, models
from sparsejax.experiments.nest import _capacity as synthesis_capacity
from sparsejax.experiments.nest import _config as synthesis_config
from sparsejax.experiments.nest import _growth as policies
from sparsejax.experiments.nest import _milestones as synthesis_milestones
from sparsejax.experiments.nest import _plots as synthesis_plots
from sparsejax.experiments.nest import _synthesis as synthesis
from sparsejax.growth._chain import get
from sparsejax.training import _errors as errors
from sparsejax.training import _metrics as metrics
from sparsejax.training import data
from sparsejax.training.data import _augment as augment
from sparsejax.training.data import _load as data_lib
from sparsejax.training.data import _stream as stream

ROOT = pathlib.Path(__file__).parents[2]
MAKE = synthesis_capacity.make  # as `compiled` replaces it

CONFIG = {
  "features": (16, 8),
  "density": 0.3,
  "growth_rounds": 3,
  "growth_units": (4, 2),
  "growth_batches": 2,
  "target_error": 1.0,
  "milestones": (300, 150),
  "milestone_rounds": (2, 1),
  "tune_epochs": 2,
  "batch_size": 64,
  "augmentation": "affine",
}


@pytest.fixture(scope="module", autouse=True)
def standard():
  with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
    yield


@pytest.fixture(scope="module")
def compiled():
  """One compilation for all runs."""
  original, known = synthesis_capacity.make, {}

  def make(config, dataset, doublings):
    of = config.model, config.features, config.area_rounds, doublings
    if of not in known:
      known[of] = original(config, dataset, doublings)
    return known[of]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(synthesis_capacity, "make", make)
    yield


@pytest.fixture(scope="module")
def run(compiled, tmp_path_factory):
  path = tmp_path_factory.mktemp("synthesis")
  return path, synthesis.grow_and_prune(CONFIG, path, verbose=False)


def test_connections_rise_then_fall(run):
  path, milestones = run
  records = metrics.read(path)
  counts = [r["connections"] for r in records]
  top = counts.index(max(counts))
  assert counts[0] < counts[1] < counts[2] == counts[top]
  assert all(a >= b for a, b in zip(counts[top:], counts[top + 1 :], strict=False))
  assert [r["units"][1:] for r in records[:3]] == [[8, 4], [12, 6], [16, 8]]
  assert all(m["connections"] <= n for m, n in zip(milestones, (300, 150), strict=True))
  assert milestones[0]["test_error_percent"] < 60
  synthesis_plots.write(path)
  assert (path / "connections.png").stat().st_size > 1000
  assert (path / "inputs.png").stat().st_size > 1000


def test_milestones_are_networks(run):
  path, milestones = run
  model, params, masks, _ = synthesis_milestones.load(path, 1)
  chain = growth.layers(model, (8, 8, 1))
  sizes = growth.size(masks, chain)
  assert int(sizes.parameters) == milestones[1]["parameters"]
  dead = jax.tree.map(
    lambda m, p: jnp.all(m | (p == 0)),
    [masks[layer.path[0]]["kernel"] for layer in chain],
    [params[layer.path[0]]["kernel"] for layer in chain],
  )
  assert all(bool(d) for d in dead)


def test_a_script_reads_the_network_of_a_milestone(run):
  path, milestones = run
  for index, milestone in ((None, milestones[1]), (0, milestones[0])):
    network = networks.load(path, index)
    assert network.image_shape == (8, 8, 1)
    live = [m for m in jax.tree.leaves(network.masks) if m.ndim > 1]
    assert sum(int(m.sum()) for m in live) == milestone["connections"]
    logits = network.apply(network.params, jnp.ones((2, 8, 8, 1)))
    assert logits.shape == (2, 10)
  with pytest.raises(errors.WorkdirError, match="milestone must be one of the 2"):
    networks.load(path, 2)


def test_it_goes_on_where_it_was_stopped(run, compiled, tmp_path, monkeypatch):
  save = synthesis._Run.save

  def then_stop(self, *args):
    save(self, *args)
    if self.rounds == 4:
      os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(synthesis._Run, "save", then_stop)
  synthesis.grow_and_prune(CONFIG, tmp_path, verbose=False)
  assert metrics.read(tmp_path) == metrics.read(run[0])[:4]
  monkeypatch.setattr(synthesis._Run, "save", save)
  synthesis.grow_and_prune(CONFIG, tmp_path, verbose=False)
  assert metrics.read(tmp_path) == metrics.read(run[0])
  with (
    np.load(tmp_path / "milestone_1.npz") as a,
    np.load(run[0] / "milestone_1.npz") as b,
  ):
    assert sorted(a) == sorted(b)
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])
  before = json.loads((tmp_path / "milestone_1.json").read_text())
  again = synthesis.grow_and_prune(CONFIG, tmp_path, verbose=False)
  assert again[1] == before
  with pytest.raises(errors.WorkdirError, match="density"):
    synthesis.grow_and_prune({**CONFIG, "density": 0.4}, tmp_path, verbose=False)


@pytest.mark.slow
def test_capacity_doubles_where_it_is_full(tmp_path):
  config = {
    **CONFIG,
    "growth_rounds": 4,
    "milestones": (300,),
    "milestone_rounds": (1,),
  }
  (found,) = synthesis.grow_and_prune(config, tmp_path, verbose=False)
  assert found["features"] == [32, 16]
  assert metrics.read(tmp_path)[3]["units"][1:] == [20, 10]


@pytest.mark.parametrize(
  ("field", "value", "rule"),
  [
    ("density", 1.5, r"density must be in \(0, 1\]; got 1.5"),
    ("milestone_rounds", (1,), "milestone_rounds must be of 2 numbers"),
    ("growth_units", (1,), "or 2 numbers, one per hidden layer"),
    ("connections_by", "chance", "must be gradient or random"),
    ("milestones", (100, 200), "fewer and fewer connections"),
    ("milestones", ((99, 90, 10), 200), "fewer and fewer connections"),
    ("milestones", ((300, 20), 200), "for each layer, 3 above 0; got "),
    ("milestones", ((300, 20, 0), 200), "for each layer, 3 above 0; got "),
    ("densty", 0.1, "did you mean 'density'"),
    ("model_kwargs", 3, "model_kwargs must be a dict; got 3"),
    ("area_rounds", -1, "area_rounds must be at least 0; got -1"),
    ("area_fraction", 1.0, r"area_fraction must be in \(0, 1\); got 1.0"),
    ("image_size", 0, "image_size must be at least 1; got 0"),
    ("seed", 2**31, r"seed must be in \[0, 2\*\*31\); got 2147483648"),
  ],
)
def test_fields_are_checked_before_any_work(tmp_path, field, value, rule):
  with pytest.raises(errors.ConfigError, match=rule):
    synthesis.grow_and_prune({**CONFIG, field: value}, tmp_path / "run", verbose=False)
  assert not (tmp_path / "run").exists()


def test_partial_areas_need_a_convolution(tmp_path):
  with pytest.raises(errors.ConfigError, match="area_rounds must be 0 for mlp"):
    synthesis.grow_and_prune({**CONFIG, "area_rounds": 1}, tmp_path, verbose=False)


def test_fields_that_were_added_later_do_not_change_old_runs():
  """At their defaults; they are part of the identity of other runs."""
  stamp = lambda **c: synthesis_config.stamp(synthesis_config.complete(c))
  added = {"area_rounds", "area_fraction", "image_size"}
  assert not added & set(stamp())
  assert stamp(area_rounds=2)["area_rounds"] == 2
  assert len(stamp()) == len(vars(synthesis_config.NestConfig())) - 3


def test_affine_distortion():
  images = jnp.zeros((3, 9, 9, 1), jnp.uint8).at[:, 4, 4].set(200)
  images = images.at[:, 0].set(50)
  key = jax.random.key(0)
  still = augment.affine(key, images, 0.0, 0.0, 0.0, 0.0)
  np.testing.assert_allclose(still, images, atol=1e-3)
  moved = augment.affine(key, images, 0.0, 0.0, 0.0, 2.0)
  assert moved.dtype == jnp.float32
  assert float(jnp.abs(moved - still).max()) > 10
  assert float(moved.max()) <= 200.0 + 1e-3
  turned = augment.affine(key, images, 30.0, 0.0, 0.0, 0.0)
  # The center stays in its place whatever the angle.
  np.testing.assert_allclose(turned[:, 4, 4, 0], 200, atol=1e-2)


def _config(name):
  """The module of a file in configs/."""
  file = ROOT / "configs" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(name, file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize(
  "name", ["mnist_lenet300_nest", "mnist_lenet5_nest", "cifar10_vgg16_nest"]
)
def test_configs_are_complete_and_seed(name):
  module = _config(name)
  for variant in getattr(module, "VARIANTS", ("",)):
    args = (variant,) if hasattr(module, "VARIANTS") else ()
    c = synthesis_config.complete(module.get_config(*args))
    model = models.create(c.model, features=c.features)
    shape = (28, 28, 1) if c.dataset == "mnist" else (32, 32, 3)
    chain = growth.layers(model, shape)
    jax.eval_shape(
      lambda key, c=c, chain=chain: growth.seed(chain, c.width_ratio, c.density, key),
      jax.random.key(0),
    )
  text = module.__doc__
  assert f"python scripts/grow_and_prune.py --config=configs/{name}.py" in text


def test_alexnet_has_the_papers_seed():
  module = _config("imagenet_alexnet_nest")
  c = synthesis_config.complete(module.get_config())
  model = models.create(c.model, num_classes=1000, features=c.features)
  chain = growth.layers(model, (227, 227, 3))
  assert sum(math.prod(layer.shape) for layer in chain) == 62_367_776
  masks = jax.eval_shape(
    lambda key: growth.seed(chain, c.width_ratio, c.density, key), jax.random.key(0)
  )
  assert len(jax.tree.leaves(masks)) == 8
  widths = [round(c.width_ratio * layer.features) for layer in chain[:-1]] + [1000]
  sources = [3, *widths[:-1]]
  live = sum(
    round(c.density * (math.prod(layer.shape[:-1]) // layer.inputs) * a * b)
    for layer, a, b in zip(chain, sources, widths, strict=True)
  )
  assert 8.0e6 < live < 8.9e6


@pytest.fixture(scope="module")
def alexnet(compiled, mock_stream, tmp_path_factory):
  """The AlexNet of the config, narrow, on a mock of ImageNet; stopped and resumed."""
  splits = tuple(mock_stream(n, 67, seed=n) for n in (32, 8, 8))
  path, asked = tmp_path_factory.mktemp("alexnet"), []
  c = _config("imagenet_alexnet_nest").get_config().to_dict() | {
    "features": (18,) * 7,
    "growth_rounds": 2,
    "growth_epochs": 1,
    "growth_units": (0, 1, 0, 0, 0, 1, 0),
    "growth_batches": 2,
    "map_candidates": 2,
    "target_error": 0.0,
    "milestones": (6_000,),
    "milestone_rounds": (1,),
    "prune_epochs": 1,
    "tolerated_error": 100.0,
    "area_rounds": 2,
    "area_fraction": 0.25,
    "tune_epochs": 1,
    "batch_size": 16,
  }

  class Stop:
    """A signal after a round of partial areas."""

    def __bool__(self):
      return len(metrics.read(path)) == 4

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(stream, "load", lambda *args: asked.append(args) or splits)
    with patch.context() as stopped:
      stopped.setattr(
        synthesis, "listen_for_signals", lambda: contextlib.nullcontext(Stop())
      )
      assert not synthesis.grow_and_prune(c, path, verbose=False)
    records = synthesis.grow_and_prune(c, path, verbose=False)
    yield c, path, records
  assert {args[-1] for args in asked} == {227}


def test_partial_areas_are_variables_of_the_network():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 255, (20, 16, 16, 1), np.uint8)
  split = data.Split(images, rng.integers(0, 10, 20).astype(np.int32))
  dataset = data_lib.unit(data.Dataset(split, split, split, 10, None, None))
  c = synthesis_config.complete(
    {"model": "lenet5", "features": (2, 3, 4), "area_rounds": 1, "batch_size": 10}
  )
  capacity = MAKE(c, dataset, 0)
  state = capacity.program.init(np.zeros(1, np.int32))
  rest, areas = synthesis_capacity.split_areas(state.model_state)
  assert {name: area.shape for name, area in areas.items()} == {
    "conv1": (12, 12, 1, 2),
    "conv2": (2, 2, 2, 3),
  }
  # Whole areas compute the same network, which the ordinary program trains.
  assert synthesis_capacity.program_of(capacity, state) is capacity.program
  whole, same = (p.evaluate(state, split) for p in (capacity.program, capacity.partial))
  chex.assert_trees_all_close(whole, same, rtol=1e-5)
  # After a cut, the other program does, with the same state, and operations are saved.
  sizes = capacity.contributions(state, split, state.key)
  areas = {name: growth.prune_areas(areas[name], sizes[name], 0.5) for name in areas}
  cut = state._replace(model_state={**rest, "areas": areas})
  assert synthesis_capacity.program_of(capacity, cut) is capacity.partial
  assert capacity.partial.evaluate(cut, split).loss != whole.loss
  before, after = (synthesis_capacity.describe(capacity, x) for x in (state, cut))
  saved = 72 * 25 * 2 + 2 * 25 * 2 * 3
  assert before["multiply_adds"] - after["multiply_adds"] == saved
  assert after["areas"] == {"conv1": 0.5, "conv2": 0.5}


@pytest.mark.slow
def test_alexnet_is_grown_and_pruned_with_partial_areas(alexnet):
  _, path, (kept,) = alexnet
  rounds = metrics.read(path)
  phases = ["grow", "prune", "areas", "areas", "tune", "done"]
  assert [r["phase"] for r in rounds] == phases
  seed, grown, pruned, *cut = rounds
  assert seed["connections"] < grown["connections"]
  assert 5_900 < pruned["connections"] == cut[-1]["connections"] <= 6_000
  # 225 positions of the first layer: 56 are removed per round.
  assert [r["areas"]["conv1"] for r in rounds] == pytest.approx(
    [1, 1, 1, 169 / 225, 113 / 225, 113 / 225]
  )
  # Each live weight is used at the positions that are left of its two maps.
  model, params, masks, state = synthesis_milestones.load(path, 0)
  uses = {name: np.asarray(area).sum((0, 1)) for name, area in state["areas"].items()}
  count = sum(
    int((np.asarray(masks[name]["kernel"]).sum((0, 1)) * uses[name]).sum())
    for name in uses
  )
  count += sum(int(masks[f"dense{i}"]["kernel"].sum()) for i in (1, 2, 3))
  assert kept["multiply_adds"] == count < pruned["multiply_adds"]
  logits = growth.with_areas(model.apply, state["areas"])(
    {"params": params}, jnp.ones((1, 67, 67, 3))
  )
  assert np.isfinite(logits).all()


@pytest.mark.slow
def test_a_stopped_alexnet_ends_like_an_uninterrupted_one(alexnet, tmp_path):
  c, path, _ = alexnet
  synthesis.grow_and_prune(c, tmp_path, verbose=False)
  assert metrics.read(tmp_path) == metrics.read(path)
  a, b = (synthesis_milestones.load(run, 0)[1:] for run in (tmp_path, path))
  chex.assert_trees_all_equal(a, b)


def test_random_neurons_are_wired_as_strongly_as_those_by_gradients(compiled):
  c = synthesis_config.complete({**CONFIG, "growth_connections": 0.0})
  capacity = synthesis_capacity.make(c, data.load("digits"), 0)
  state, chain = capacity.program.init(np.zeros(1, np.int32)), capacity.chain
  state = policies.with_masks(state, growth.seed(chain, 0.5, 0.3, jax.random.key(1)))
  bridges = [
    jax.random.normal(jax.random.key(i), (a.shape[0], b.shape[1]))
    for i, (a, b) in enumerate(itertools.pairwise(chain))
  ]
  found = jax.tree.map(jnp.zeros_like, state.params), bridges
  grown = {}
  for how in ("gradient", "random"):
    config = synthesis_config.complete({**vars(c), "units_by": how})
    new = policies.grow(state, chain, found, lambda params: 0.0, config)
    grown[how] = sj.masks(new.opt_state)
  for layer in chain:
    before = get(sj.masks(state.opt_state), layer.path)
    gradient, random = (get(grown[how], layer.path) for how in ("gradient", "random"))
    assert int(gradient.sum()) == int(random.sum()) > int(before.sum())
  # Other inputs, not others of the same neurons.
  first = [np.asarray(get(masks, chain[0].path)) for masks in grown.values()]
  assert (first[0] != first[1]).any()


def test_batches_of_growth_repeat_no_image_before_all_are_drawn():
  first, second, third, fourth = np.asarray(
    policies.batch_orders(jax.random.key(0), examples=11, size=5, batches=4)
  )
  for a, b in ((first, second), (third, fourth)):
    assert len({*a.tolist(), *b.tolist()}) == 10
  assert {*first.tolist()} != {*third.tolist()}
  whole = jax.random.permutation(jax.random.key(0), 11)
  np.testing.assert_array_equal(np.concatenate([first, second]), whole[:10])


def test_an_unfinished_or_damaged_milestone_is_not_loaded(tmp_path):
  record = {"num_classes": 10, "features": (4, 3)}
  trees = {"params": {"dense1": {"kernel": jnp.ones((2, 4))}}}
  (tmp_path / "config.json").write_text('{"model": "mlp", "model_kwargs": {}}')
  synthesis_milestones.write(tmp_path, 0, record, trees)
  chex.assert_trees_all_equal(
    synthesis_milestones.load(tmp_path, 0)[1], trees["params"]
  )
  file = tmp_path / "milestone_0.npz"
  file.write_bytes(file.read_bytes()[:-9])
  with pytest.raises(errors.CheckpointError, match=r"milestone_0 of .* cannot be read"):
    synthesis_milestones.load(tmp_path, 0)
  # A run that is killed between the two files has written no record.
  synthesis_milestones.write(tmp_path, 1, record, trees)
  (tmp_path / "milestone_1.json").unlink()
  with pytest.raises(errors.CheckpointError, match=r"milestone_1 of .* cannot be read"):
    synthesis_milestones.load(tmp_path, 1)
  assert len(synthesis_milestones.read(tmp_path)) == 1


def test_milestones_are_read_in_the_order_of_their_indices(tmp_path):
  for index in (0, 2, 10):
    synthesis_milestones.write(tmp_path, index, {"index": index}, {})
  assert [r["index"] for r in synthesis_milestones.read(tmp_path)] == [0, 2, 10]
