"""A run on a mesh of devices is the run on one, but for the rounding of gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import sparsejax as sj
from sparsejax import training
from sparsejax.training import TrainState
from sparsejax.training import _optimizers as optimizers
from sparsejax.training import _run as run_lib
from sparsejax.training import config as config_lib
from sparsejax.training.parallel import _mesh as mesh_lib
from sparsejax.training.parallel import _replicas as replicas

LAYOUTS = {
  "data": {"data": 8},
  "fsdp": {"data": 8, "fsdp": True},
  "tensor": {"data": 2, "model": 4},
  "both": {"data": 4, "model": 2, "fsdp": True},
}


def _layout(**mesh):
  return _layout_of(mesh)


def _layout_of(mesh):
  config = config_lib.complete({"mesh": mesh, "batch_size": 32})
  return mesh_lib.make_layout(**vars(config.mesh), batch_size=config.batch_size)


def _specs(layout):
  params = {
    "embed": {"embedding": jnp.zeros((256, 64))},
    "dense": {"kernel": jnp.zeros((64, 48)), "bias": jnp.zeros(48)},
    "odd": {"kernel": jnp.zeros((64, 7))},
    "experts": {"kernel": jnp.zeros((4, 16, 24))},
  }
  state = TrainState(jnp.zeros(()), jnp.zeros(()), params, {}, {"mu": params})
  places = mesh_lib.of_state(layout, jax.eval_shape(lambda: state))
  assert places.params == places.opt_state["mu"]
  assert places.step.spec == P()
  return {name: x.spec for name, x in run_lib.named(places.params).items()}


def test_each_layout_cuts_what_it_says():
  nothing = _specs(_layout(data=8))
  assert set(nothing.values()) == {P(None), P(None, None), P(None, None, None)}
  assert _specs(_layout(data=2, model=4)) == {
    "embed/embedding": P(None, None),
    "dense/kernel": P(None, "model"),
    "dense/bias": P(None),
    "odd/kernel": P("model", None),  # 7 outputs cannot be cut
    "experts/kernel": P(None, None, "model"),
  }
  rules = {"experts": ("model", None, None)}
  assert _specs(_layout(data=2, model=4, fsdp=True, rules=rules)) == {
    "embed/embedding": P("data", None),
    "dense/kernel": P("data", "model"),
    "dense/bias": P(None),
    "odd/kernel": P("model", None),
    "experts/kernel": P("model", None, "data"),
  }


def test_all_devices_that_model_leaves():
  assert dict(_layout(data=-1, model=2).mesh.shape) == {"data": 4, "model": 2}
  assert _layout(data=1, model=1) is None


@pytest.mark.parametrize(
  ("mesh", "rule"),
  [
    ({"data": 3, "model": 4}, r"mesh.data \* mesh.model must be at most the 8 devices"),
    ({"data": 5}, r"batch_size must be a multiple of mesh.data \(5\); got 32"),
    ({"data": 0}, "mesh must be of at least 1 along data"),
    ({"data": 2.0}, r"mesh.data must be int; got 2.0"),
    ({"rows": 2}, "mesh has no field 'rows'; there are: data, model"),
    ({"rules": {"a": ("x",)}}, "mesh.rules must be a dict of tuples"),
    (3, "mesh must be a dict of fields; got 3"),
  ],
)
def test_what_cannot_be_is_refused(mesh, rule):
  with pytest.raises(training.ConfigError, match=rule):
    _layout_of(mesh)


def test_a_rule_that_does_not_fit_is_refused():
  rules = {"odd": ("model", "data")}
  with pytest.raises(training.ConfigError, match=r"mesh.rules\['odd'\] must name"):
    _specs(_layout(data=2, model=4, rules=rules))


def test_seeds_side_by_side_take_one_device():
  with pytest.raises(training.ConfigError, match="num_seeds must be 1 on a mesh of 8"):
    mesh_lib.make_layout(8, 1, batch_size=32, num_seeds=2)


def test_the_next_mask_update_is_the_next_that_is_due():
  for fields in (
    {"update_every": 7},
    {"update_every": 1, "method": "gradual_magnitude", "start_fraction": 0.3},
    {"update_every": 10, "end_fraction": 0.5},
    {"method": "static_sparse"},
  ):
    config, total = config_lib.complete(fields), 60
    schedule = optimizers.update_schedule(config, total)
    updates = [step for step in range(1, total + 1) if schedule.due(np.int32(step))]
    for count in range(total):
      expected = next((u for u in updates if u > count), None)
      assert schedule.next_after(count) == expected


def _agreement(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return np.mean(np.concatenate([(x == y).ravel() for x, y in pairs]))


def _masks(result):
  return jax.device_get(sj.masks(result.state.opt_state))


def _bits(result):
  state = result.state._replace(key=jax.random.key_data(result.state.key))
  return jax.device_get(state)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, pruned):
  """The run on one device that all layouts are compared with."""
  workdir = tmp_path_factory.mktemp("alone")
  return training.train_and_evaluate(pruned, workdir, verbose=False)


QUICK = "both"


@pytest.mark.parametrize(
  "name",
  [n if n == QUICK else pytest.param(n, marks=pytest.mark.slow) for n in LAYOUTS],
)
def test_a_run_on_a_mesh(name, alone, pruned, tmp_path, fast):
  mesh = {"mesh": LAYOUTS[name]}
  result = training.train_and_evaluate({**pruned, **mesh}, tmp_path, verbose=False)
  assert result.finished
  assert _agreement(_masks(result), _masks(alone)) >= 0.99
  np.testing.assert_allclose(result.test_accuracy, alone.test_accuracy, atol=0.02)
  places = mesh_lib.of_state(_layout(**LAYOUTS[name]), result.state)
  for x, place in zip(
    jax.tree.leaves(result.state), jax.tree.leaves(places), strict=True
  ):
    assert x.sharding.is_equivalent_to(place, x.ndim)
  # Another run on the same layout is the same bit for bit.
  repeated = training.train_and_evaluate(
    {**pruned, **mesh}, tmp_path / "repeated", verbose=False
  )
  for x, y in zip(
    jax.tree.leaves(_bits(result)), jax.tree.leaves(_bits(repeated)), strict=True
  ):
    assert x.tobytes() == y.tobytes()
  # Restored onto the mesh, and onto one device.
  again = training.train_and_evaluate({**pruned, **mesh}, tmp_path, verbose=False)
  single = training.train_and_evaluate(pruned, tmp_path, verbose=False)
  for other in (again, single):
    assert _agreement(_masks(other), _masks(result)) == 1
    assert other.step == result.step
  # A replica that drifts is told of.
  masks = sj.masks(result.state.opt_state)
  assert replicas.compare(result.state, 160) == replicas.compare(alone.state, 160)
  whole = jax.device_put(masks, _layout(**LAYOUTS[name]).replicated)
  x = jax.tree.leaves(whole)[0]
  pieces = [np.array(s.data) for s in x.addressable_shards]
  pieces[3][0, 0] ^= True
  devices = [s.device for s in x.addressable_shards]
  drifted = jax.make_array_from_single_device_arrays(
    x.shape, x.sharding, [jax.device_put(*p) for p in zip(pieces, devices, strict=True)]
  )
  others = jax.tree.leaves(whole)[1:]
  new = dict(zip(map(id, jax.tree.leaves(masks)), [drifted, *others], strict=True))
  state = jax.tree.map(lambda x: new.get(id(x), x), result.state)
  with pytest.raises(training.ReplicaError, match="after step 160: masks must be the"):
    replicas.compare(state, 160)
