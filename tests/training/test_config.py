import ast
import dataclasses
import inspect
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj
from sparsejax import training
from sparsejax.training import _errors as errors
from sparsejax.training import _methods as methods
from sparsejax.training import _optimizers as optimizers
from sparsejax.training import _run as run_lib
from sparsejax.training import config as config_lib
from sparsejax.training import default_config, use_method


def test_defaults_are_complete_and_valid():
  complete = config_lib.complete({})
  assert config_lib.to_json(complete) == config_lib.to_json(default_config())


def test_ints_become_floats_where_a_float_is_meant():
  assert config_lib.complete({"learning_rate": 1}).learning_rate == 1.0


def test_kwargs_keep_their_tuples():
  config = config_lib.complete({"model_kwargs": {"features": (30, 10)}})
  assert config.model_kwargs == {"features": (30, 10)}


@pytest.mark.parametrize(
  ("field", "value", "match"),
  [
    ("densty", 0.1, "no field 'densty'; did you mean 'density'"),
    ("zzz", 0.1, "no field 'zzz'; there are: "),
    ("density", 0.0, r"density must be in \(0, 1\]; got 0.0"),
    ("density", 1.5, r"density must be in \(0, 1\]; got 1.5"),
    ("density", float("nan"), r"density must be in \(0, 1\]; got nan"),
    ("density", "0.1", "density must be float; got '0.1'"),
    ("drop_fraction", 1.0, r"drop_fraction must be in \[0, 1\)"),
    (
      "final_drop_fraction",
      0.9,
      r"final_drop_fraction must not be above drop_fraction",
    ),
    ("end_fraction", 0.0, "end_fraction must be in"),
    ("update_every", 0, "update_every must be at least 1; got 0"),
    ("batch_size", 0, "batch_size must be at least 1; got 0"),
    ("batch_size", -5, "batch_size must be at least 1; got -5"),
    ("batch_size", 1.5, "batch_size must be int; got 1.5"),
    ("num_epochs", True, "num_epochs must be int; got True"),
    ("num_epochs", 0, "num_epochs must be at least 1; got 0"),
    ("tensorboard", 1, "tensorboard must be bool; got 1"),
    ("learning_rate", 0.0, "learning_rate must be above 0"),
    ("learning_rate", float("inf"), "learning_rate must be above 0 and finite"),
    ("method", "set", "method must be one of sparse_momentum, .*; got 'set'"),
    ("dataset", "imagenet", "dataset must be one of digits, mnist"),
    ("optimizer", "sgdd", "optimizer must be one of .*did you mean 'sgd'"),
    ("method", "rigel", "method must be one of .*did you mean 'rigl'"),
    ("model_kwargs", 3, "model_kwargs must be a dict; got 3"),
    ("num_seeds", 0, "num_seeds must be at least 1"),
    ("seed", -1, "seed must be in"),
    ("label_smoothing", 1.0, r"label_smoothing must be in \[0, 1\)"),
    ("lr_decay_epochs", (30, -1), "lr_decay_epochs must be a tuple of numbers above 0"),
    ("warmup_epochs", 11.0, r"warmup_epochs must not be above num_epochs \(10\)"),
  ],
)
def test_bad_fields_name_field_rule_and_value(field, value, match):
  with pytest.raises(errors.ConfigError, match=match):
    config_lib.complete({field: value})


def test_start_after_end():
  with pytest.raises(
    errors.ConfigError, match=r"must not be above end_fraction \(0.3\)"
  ):
    config_lib.complete({"start_fraction": 0.5, "end_fraction": 0.3})


def test_difference_names_what_changed_and_passes_over_where_the_data_are():
  a = config_lib.to_json(config_lib.complete({}))
  b = config_lib.to_json(config_lib.complete({"density": 0.2, "data_dir": "/x"}))
  assert config_lib.difference(a, b) == ["density: 0.1 -> 0.2"]
  assert config_lib.difference(a, json.loads(json.dumps(a))) == []


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_is_a_variant(method):
  config = default_config()
  use_method(config, method)
  complete = config_lib.complete(config)
  tx = optimizers.make_tx(complete, 1000, 0)
  params = {"layer": {"kernel": jnp.ones((20, 10)), "bias": jnp.ones(10)}}
  assert sj.masks(jax.eval_shape(tx.init, params))


def test_unknown_variant():
  with pytest.raises(errors.ConfigError, match=r"method must be one of.*got 'set'"):
    use_method(default_config(), "set")


def test_method_kwargs_that_do_not_fit():
  config = config_lib.complete({"method_kwargs": {"gama": 1.0}})
  with pytest.raises(errors.ConfigError, match="method_kwargs must be arguments of"):
    optimizers.make_tx(config, 1000, 0)


def test_scores_of_methods_by_name():
  kwargs = {"grow_score": "random", "redistribute_by": None, "drop_scope": "global"}
  resolved = methods.resolve_kwargs("sparse_momentum", kwargs)
  assert resolved == {**kwargs, "grow_score": sj.random}
  fields = {"redistribute_by": "nonzeros"}
  assert methods.resolve_kwargs("snfs", fields) == {"redistribute_by": sj.nonzeros}
  for fields in ({"grow_score": "momentun"}, {"drop_score": "nonzeros"}):
    with pytest.raises(errors.ConfigError, match="method_kwargs must name a score for"):
      methods.resolve_kwargs("sparse_momentum", fields)


def test_learning_rate_steps():
  config = config_lib.complete({"lr_decay_every": 100})
  rate = optimizers.learning_rate(config, 1000)
  np.testing.assert_allclose(
    [rate(t) for t in (0, 99, 100, 199, 200)], [0.1, 0.1, 0.01, 0.01, 0.001], rtol=1e-5
  )


@pytest.mark.parametrize(
  ("fields", "expected"),
  [
    # 100 steps an epoch; (0, 99, 100, 299, 300, 649, 650, 999).
    ({"lr_decay_epochs": (3, 6.5)}, [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
    (
      {"lr_schedule": "constant", "warmup_epochs": 3.0},
      [1 / 300, 1 / 3, 101 / 300, 1, 1, 1, 1, 1],
    ),
    (
      {"lr_schedule": "cosine", "warmup_epochs": 3.0},
      [1 / 300, 1 / 3, 101 / 300, 1, 1, 0.50224, 0.5, 5.0355e-6],
    ),
  ],
)
def test_learning_rate_decays_by_epochs_and_warms_up(fields, expected):
  config = config_lib.complete({"learning_rate": 1.0, **fields})
  rate = jax.jit(jax.vmap(optimizers.learning_rate(config, 1000)))
  steps = jnp.array([0, 99, 100, 299, 300, 649, 650, 999])
  np.testing.assert_allclose(rate(steps), expected, rtol=1e-4, atol=1e-6)


def test_a_field_that_came_in_later_stands_at_its_default_in_older_runs():
  new = config_lib.to_json(config_lib.complete({}))
  old = {k: v for k, v in new.items() if k != "label_smoothing"}
  assert config_lib.difference(old, new) == []
  assert config_lib.difference(old, {**new, "label_smoothing": 0.1}) == [
    "label_smoothing: 0.0 -> 0.1"
  ]


def test_drop_fraction_falls_and_stays():
  config = config_lib.complete(
    {"drop_fraction": 0.5, "final_drop_fraction": 0.005, "end_fraction": 0.5}
  )
  f = optimizers.drop_fraction(config, 1000)
  np.testing.assert_allclose(
    [f(t) for t in (0, 250, 500, 900)], [0.5, 0.2525, 0.005, 0.005], rtol=1e-5
  )


def _first_update(**fields):
  """The first update of a weight of 2 whose gradient is 1, at learning rate 1."""
  c = config_lib.complete({"learning_rate": 1.0, "weight_decay": 0.1, **fields})
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    tx = optimizers.unguarded(c, optax.constant_schedule(1.0))
    params = {"kernel": jnp.full((2, 2), 2.0)}
    state = tx.init(params)
    updates, _ = tx.update({"kernel": jnp.ones((2, 2))}, state, params)
  return float(updates["kernel"][0, 0])


def test_fields_are_arguments_of_the_optimizer():
  # Gradient and L2 are 1 + 0.1 * 2; Nesterov's momentum adds 0.9 of it.
  assert _first_update(optimizer="sgd") == pytest.approx(-1.2 * 1.9)
  # Decoupled decay adds 0.1 * 2 to a sign; lion has no bias correction to undo.
  assert _first_update(optimizer="lion") == pytest.approx(-1.2)
  assert _first_update(optimizer="sign_sgd", weight_decay=0.0) == pytest.approx(-1)
  # Keyword arguments take precedence: no momentum.
  kwargs = {"momentum": None, "nesterov": False}
  plain = _first_update(optimizer="sgd", optimizer_kwargs=kwargs)
  assert plain == pytest.approx(-1.2)
  with pytest.raises(errors.ConfigError, match="optimizer_kwargs must be arguments of"):
    _first_update(optimizer="lion", optimizer_kwargs={"b3": 0.5})


@pytest.mark.parametrize("name", config_lib.OPTIMIZERS)
def test_every_optimizer_updates_a_sparse_network(name):
  c = config_lib.complete({"optimizer": name, "density": 0.5, "method": "rigl"})
  params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}

  def step(params):
    tx = optimizers.make_tx(c, 1000, 0)
    return tx.update(params, tx.init(params), params)[0]

  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    updates = jax.eval_shape(step, params)
  assert jax.tree.map(lambda x: x.shape, updates) == {"kernel": (4, 4), "bias": (4,)}


def test_the_optimizers_are_those_of_optax():
  """All its functions of a learning rate that may be a schedule."""
  found = {
    name
    for name, item in vars(optax).items()
    if inspect.isfunction(item)
    and not name.startswith(("_", "scale_by"))
    and next(iter(inspect.signature(item).parameters), "") == "learning_rate"
  }
  assert {*config_lib.OPTIMIZERS} - {"muon"} <= found
  if optax.__version__.startswith("0.2.8"):
    # It needs losses; two take no schedule; and one is deprecated.
    left_out = {"lbfgs", "rprop", "sm3", "optimistic_adam"}
    assert {*config_lib.OPTIMIZERS} == found - left_out | {"muon"}


@pytest.mark.parametrize(
  ("every", "start", "end"), [(7, 0.2, 0.8), (1, 0.0, 1.0), (60, 0.0, 1.0)]
)
def test_due_is_the_schedule_of_the_optimizer_itself(every, start, end):
  """The loop's flag and the optimizer's own schedule must agree at every step."""
  total = 60
  config = config_lib.complete(
    {"update_every": every, "start_fraction": start, "end_fraction": end}
  )
  schedule = optimizers.update_schedule(config, total)
  counting = sj.MaskTransform(
    init=lambda params: jnp.zeros((), jnp.int32),
    update=lambda inputs, topology, count: (topology, count + 1),
  )
  tx = sj.sparsify(
    optax.sgd(0.1),
    counting,
    0.5,
    update_every=every,
    start_step=schedule.start,
    end_step=schedule.end,
  )
  update = jax.jit(tx.update)
  params = {"kernel": jnp.ones((4, 5))}
  state, flags = tx.init(params), []
  for _ in range(total):
    before = int(state.transform_state)
    _, state = update(params, state, params)
    flags.append(int(state.transform_state) > before)
  assert [bool(schedule.due(jnp.int32(step + 1))) for step in range(total)] == flags
  assert schedule.number(total // 3, total) == sum(flags[total // 3 :])
  assert not flags[-1]
  assert any(flags) == (schedule.number(0, total) > 0)


@pytest.mark.parametrize("method", ["dense", "static_sparse"])
def test_fixed_masks_are_never_due(method):
  schedule = optimizers.update_schedule(config_lib.complete({"method": method}), 1000)
  assert not any(schedule.due(jnp.int32(step)) for step in range(0, 1000, 33))
  assert schedule.number(0, 1000) == 0
  assert schedule.next_after(0) is None


def _reads_config(path):
  """Returns whether a file reads a field of a complete config, or names its class."""
  fields = {field.name for field in dataclasses.fields(config_lib.TrainConfig)}
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Name | ast.alias) and "TrainConfig" in ast.unparse(node):
      return True
    if isinstance(node, ast.Attribute) and node.attr in fields:
      owner = ast.unparse(node.value).split(".")[-1]
      if owner in ("c", "config", "full", "complete"):
        return True
  return False


def test_a_config_is_read_in_few_files():
  """`prepare` turns it into a `Run`, and nothing below reads its fields."""
  root = pathlib.Path(training.__file__).parent
  readers = {p.name for p in root.rglob("*.py") if _reads_config(p)} - {"__init__.py"}
  assert readers == {
    "_train_config.py",  # defines it
    "_supermask.py",  # sets fields for users
    "_run.py",  # turns it into a run
    "_optimizers.py",  # ... with these schedules and optimizers
    "_load.py",  # turns a directory into a run
    "_loop.py",  # intervals of records, evaluations and checkpoints
    "_picture.py",  # the title
  }


def test_steps_of_a_method_are_explained_by_fields():
  fields = {"method": "granet", "num_steps": 50, "update_every": 100}
  fits = "end_step must be .* end_fraction=1 of the run's 50 steps"
  with pytest.raises(errors.ConfigError, match=fits):
    run_lib.prepare(fields)
