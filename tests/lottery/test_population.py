import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj
from sparsejax import lottery, supermasks
from sparsejax.lottery import _member as member_lib

EXAMPLES, SIZE = 64, 16


def loss(params, state, batch, key):
  x, y = batch
  hidden = jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"][None])
  logits = hidden @ params["b"]["kernel"]
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
  return jnp.mean(losses), {"seen": state["seen"] + 1}


def validate(params, state, held_out):
  return loss(params, state, held_out, None)[0]


def measure(params, state, held_out):
  return {"loss": validate(params, state, held_out), "seen": state["seen"]}


@pytest.fixture(scope="module")
def data():
  x = jax.random.normal(jax.random.key(0), (EXAMPLES, 6))
  return x, jnp.argmax(x[:, :3] + x[:, 3:], 1).astype(jnp.int32)


TX = sj.sparsify(
  optax.sgd(0.1, momentum=0.9),
  sj.chain(),
  None,
  update_every=None,
  mask_gradients=True,
)


def population(tx=TX, n=8, masks=True):
  """Networks of one shape, each with weights, masks and a data order of its own."""
  keys = jax.random.split(jax.random.key(1), n)

  def one(key):
    k1, k2 = jax.random.split(key)
    params = {
      "a": {"kernel": jax.random.normal(k1, (6, 8)), "bias": jnp.zeros(8)},
      "b": {"kernel": jax.random.normal(k2, (8, 3))},
    }
    live = {
      "a": {"kernel": jnp.abs(params["a"]["kernel"]) > 0.7, "bias": None},
      "b": {"kernel": jnp.abs(params["b"]["kernel"]) > 0.7},
    }
    return params, live, {"seen": jnp.int32(0)}

  params, live, state = jax.vmap(one)(keys)
  return lottery.stack_members(tx, keys, params, live if masks else None, state)


def train(members, data, tx=TX, **kwargs):
  defaults = {"batch_size": SIZE, "steps": 30, "validate": validate, "every": 7}
  defaults |= {"measure": measure, "measure_at": (5,), "held_out": data}
  return lottery.train_population(loss, tx, members, data, **{**defaults, **kwargs})


@pytest.fixture(scope="module")
def alone(data):
  """Eight tickets, one after another."""
  return train(population(), data, together=1)


@pytest.mark.parametrize(
  "how", ["together", pytest.param("chunks", marks=pytest.mark.slow), "devices"]
)
def test_members_are_as_if_trained_alone(alone, data, how):
  """Exactly as far as XLA's CPU products go: 1e-5 is what is promised."""
  kwargs = {
    "together": {"together": 8},
    "chunks": {"together": 3},
    "devices": {"devices": jax.devices()[:4]},
  }[how]
  many = train(population(), data, **kwargs)
  for a, b in zip(
    jax.tree.leaves(alone._replace(members=alone.members._replace(key=0))),
    jax.tree.leaves(many._replace(members=many.members._replace(key=0))),
    strict=True,
  ):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-5)
  if how == "devices":
    spec = many.members.params["a"]["kernel"].sharding.spec
    assert spec == jax.sharding.PartitionSpec("members")


def test_what_is_recorded(alone, data):
  assert alone.steps.tolist() == [7, 14, 21, 28]
  assert alone.measured.tolist() == [5, 30]
  assert alone.validation_loss.shape == (8, 4)
  assert alone.measurements["loss"].shape == (8, 2)
  assert alone.measurements["seen"].tolist() == [[5, 30]] * 8
  best = alone.validation_loss.argmin(1)
  np.testing.assert_array_equal(alone.early_stop, alone.steps[best])
  np.testing.assert_allclose(
    alone.at_early_stop["loss"], alone.validation_loss.min(1), rtol=1e-6
  )
  np.testing.assert_array_equal(alone.at_early_stop["seen"], alone.early_stop)
  dead = ~np.asarray(population().opt_state.masks["a"]["kernel"])
  assert (np.asarray(alone.members.params["a"]["kernel"])[dead] == 0).all()


def test_a_training_ends_when_it_is_asked_to(data):
  asked = []

  def stopped():
    asked.append(len(asked))
    return len(asked) > 2

  with pytest.raises(KeyboardInterrupt):
    train(population(), data, together=1, stopped=stopped)
  assert len(asked) == 3


def rising(start, validate, **kwargs):
  """Trains one weight per member, which rises by one a step."""
  tx = sj.static_sparse(optax.sgd(1.0), density=1.0)
  keys = jax.random.split(jax.random.key(0), len(start))
  params = {"kernel": jnp.array(start).reshape(-1, 1, 1)}
  return lottery.train_population(
    lambda p, state, batch, key: (-jnp.sum(p["kernel"]), state),
    tx,
    lottery.stack_members(tx, keys, params),
    jnp.zeros((4, 1)),
    batch_size=2,
    validate=lambda p, state, held_out: validate(p["kernel"][0, 0]),
    measure=lambda p, state, held_out: p["kernel"][0, 0],
    **kwargs,
  )


def test_the_early_stop_of_each_member():
  """Weights that rise by one a step, and a loss that is least at 12."""
  done = rising([0.0, 5.0, 11.0], lambda w: jnp.abs(w - 12.0), steps=20, every=1)
  assert done.early_stop.tolist() == [12, 7, 1]
  assert done.at_early_stop.tolist() == [12.0, 12.0, 12.0]
  assert done.measurements.tolist() == [[20.0], [25.0], [31.0]]


def test_a_run_in_two_parts_is_the_same(alone, data):
  first = train(population(), data, steps=13, together=1)
  second = train(first.members, data, start=13, measure_at=(), together=1)
  for a, b in zip(
    jax.tree.leaves(alone.members.params),
    jax.tree.leaves(second.members.params),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
  assert second.steps.tolist() == [14, 21, 28]


def test_equal_keys_see_equal_data(data):
  members = population(n=2)
  twins = jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), members)
  a, b = train(twins, data, together=1).members.params["a"]["kernel"]
  np.testing.assert_array_equal(a, b)
  twins = twins._replace(key=members.key)
  a, b = train(twins, data, together=1).members.params["a"]["kernel"]
  assert bool((a != b).any())


def due(count):
  return (count + 1) % 10 == 0


def test_methods_that_move_masks(data):
  """A shared `due` keeps the branch of a mask update a branch under vmap."""
  tx = sj.rigl(optax.sgd(0.1, momentum=0.9), density=0.5, update_every=10)
  members = population(tx, n=2, masks=False)
  done = train(members, data, tx=tx, due=due, together=2)
  before, after = members.opt_state, done.members.opt_state
  moved = [
    bool((a != b).any())
    for a, b in zip(
      jax.tree.leaves(before.masks), jax.tree.leaves(after.masks), strict=True
    )
  ]
  assert all(moved)
  for mask, budget in zip(
    jax.tree.leaves(after.masks), jax.tree.leaves(after.budgets), strict=True
  ):
    np.testing.assert_array_equal(mask.sum((1, 2)), budget)

  def branches(rule):
    program = member_lib.program(loss, tx, None, None, rule, EXAMPLES, True)
    order = jnp.zeros((2, EXAMPLES), jnp.int32)
    lowered = program.args[0].lower(members, data, order, 0, 1, size=SIZE)
    return lowered.as_text().count("stablehlo.case")

  assert branches(due) > branches(None)


@pytest.mark.parametrize(
  "tx",
  [
    sj.straight_through(optax.sgd(0.1), density=0.5),
    pytest.param(optax.sgd(0.1), marks=pytest.mark.slow),
  ],
)
def test_methods_of_the_forward_pass_and_plain_optax(data, tx):
  members = population(tx, n=2, masks=False)
  done = train(members, data, tx=tx, together=2, measure=None, measure_at=())
  assert (done.validation_loss[:, -1] < done.validation_loss[:, 0]).all()
  assert done.measurements is None


@pytest.mark.parametrize(
  ("kwargs", "factor"), [({}, 1), ({"effective": supermasks.rescaled_effective}, 2)]
)
def test_the_early_stop_is_seen_through_its_own_masks(kwargs, factor):
  """One of two weights is live: the first, until the second has outgrown it."""
  tx = sj.straight_through(optax.sgd(1.0), density=0.5, update_every=1)
  params = {"kernel": jnp.array([[[3.0, 0.5]]])}
  members = lottery.stack_members(tx, jax.random.split(jax.random.key(0), 1), params)
  done = lottery.train_population(
    lambda p, state, batch, key: (-jnp.sum(p["kernel"][:, 1]), state),
    tx,
    members,
    jnp.zeros((4, 1)),
    batch_size=2,
    steps=6,
    validate=lambda p, state, held_out: -p["kernel"][0, 0],
    every=1,
    measure=lambda p, state, held_out: p["kernel"][0, 0],
    measure_at=(1,),
    **kwargs,
  )
  assert done.early_stop.tolist() == [1]
  assert done.at_early_stop.tolist() == [3.0 * factor]
  assert done.measurements.tolist() == [[3.0 * factor, 0.0]]


def test_where_memory_does_not_suffice(alone, data, monkeypatch):
  whole, sizes = member_lib.program, []

  def small(*arguments):
    program = whole(*arguments)

    def run(members, *rest):
      sizes.append(len(members.key))
      if len(members.key) > 2:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
      return program(members, *rest)

    return run

  monkeypatch.setattr(member_lib, "program", small)
  many = train(population(), data, together=8)
  assert sizes == [8, 4, 2, 2, 4, 2, 2]
  np.testing.assert_allclose(many.validation_loss, alone.validation_loss, atol=1e-5)


@pytest.mark.parametrize(
  ("kwargs", "match"),
  [
    ({"batch_size": 65}, r"batch_size must be in \[1, 64\], got 65"),
    ({"steps": 4, "start": 4}, "steps must be at least 5, got 4"),
    ({"every": 0}, "every must be at least 1, got 0"),
    ({"measure_at": (31,)}, r"measure_at must be in \[1, 30\], got 31"),
    ({"together": 0}, "together must be at least 1, got 0"),
    ({"together": 3, "devices": [0, 1]}, "multiple of the 2 devices, got 3"),
  ],
)
def test_bad_input(data, kwargs, match):
  with pytest.raises(ValueError, match=match):
    train(population(), data, **kwargs)


@pytest.mark.parametrize(
  ("kwargs", "match"),
  [
    ({"batch_size": 1.5}, r"batch_size must be an integer, got 1\.5"),
    ({"tx": 0.1}, r"tx must be an optax optimizer, got 0\.1"),
    ({"validate": loss}, r"validate must be a function of \(params, model_state, held"),
  ],
)
def test_wrong_types(data, kwargs, match):
  with pytest.raises(TypeError, match=match):
    train(population(), data, **kwargs)


def test_bad_members():
  keys = jax.random.split(jax.random.key(0), 2)
  with pytest.raises(ValueError, match="params must have the leading axis of keys"):
    lottery.stack_members(TX, keys, {"kernel": jnp.ones((3, 2, 2))})


def test_a_member_that_diverges_has_no_early_stop_at_its_start():
  """The loss of the second member is never finite."""
  loss = lambda w: jnp.where(w >= 50.0, jnp.nan, 9.0 - w)
  done = rising([0.0, 50.0], loss, steps=4, every=2)
  assert done.early_stop.tolist() == [4, 4]
  assert done.at_early_stop.tolist() == [4.0, 54.0]
