"""One mask update is the same, bit for bit, however JAX is asked to run it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sparsejax as sj

SGD = optax.sgd(0.1, momentum=0.9)
SHAPES = {"a": (16, 8), "b": (3, 8, 4), "bias": (8,)}
SPECS = {"a": P("data", "model"), "b": P(None, "model", None), "bias": P()}


class Update:
  """A due mask update of one method, its inputs, and what jit makes of them."""

  def __init__(self, method):
    self.tx = method(SGD, density=0.3, update_every=2, start_step=0, end_step=4)
    self.params, self.grads = self.member(0)
    self.state = self.tx.init(self.params)._replace(count=jnp.int32(1))
    self.expected = jax.device_get(jax.jit(self)(*self.inputs))

  def member(self, seed):
    """Weights and gradients of one decimal, so that scores tie."""
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(rng.normal(size=shape).round(1), jnp.float32)
    return tuple({name: draw(s) for name, s in SHAPES.items()} for _ in range(2))

  @property
  def inputs(self):
    return self.params, self.grads, self.state

  def __call__(self, params, grads, state, **extra):
    state = self.tx.update(grads, state, params, **extra)[1]
    return state.masks, state.budgets

  def check(self, got):
    chex.assert_trees_all_equal(jax.device_get(got), self.expected)

  def sharded(self, mesh):
    """The inputs, laid out over the mesh; moments and masks as their weights."""
    where = {SHAPES[name]: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    replicated = NamedSharding(mesh, P())
    put = lambda x: jax.device_put(x, where.get(x.shape, replicated))
    return jax.tree.map(put, self.inputs)


# The one that uses every part of the algebra, and one that draws random numbers.
@pytest.fixture(scope="module", params=["sparse_momentum", "sparse_evolution"])
def update(request, harness):
  [method] = [m for m in harness.METHODS if str(m) == request.param]
  return Update(method)


def _mesh(axis_type):
  return jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)


def _stacked(members):
  return jax.tree.map(lambda *x: jnp.stack(x), *members)


def test_the_update_is_a_mask_update(update):
  masks, _ = update.expected
  before = jax.device_get(update.state.masks)
  assert all(np.any(masks[name] != before[name]) for name in ("a", "b"))
  assert masks["a"].sum() + masks["b"].sum() == 67  # round(0.3 * (128 + 96))


def test_without_jit(update):
  update.check(update(*update.inputs))


def test_scan(update):
  def step(carry, grads):
    params, state = carry
    updates, state = update.tx.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), None

  @jax.jit
  def run(params, grads, state):
    grads = _stacked([grads])
    return jax.lax.scan(step, (params, state), grads)[0][1]

  state = run(*update.inputs)
  update.check((state.masks, state.budgets))


def test_vmap(update):
  members = [update.inputs, (*update.member(1), update.state)]
  both = jax.jit(jax.vmap(update))(*_stacked(members))
  for i, member in enumerate(members):
    got = jax.tree.map(lambda x, i=i: x[i], both)
    chex.assert_trees_all_equal(got, jax.jit(update)(*member))
  update.check(jax.tree.map(lambda x: x[0], both))


def test_pmap(update):
  got = jax.pmap(update)(*_stacked([update.inputs] * 8))
  for device in range(8):
    update.check(jax.tree.map(lambda x, i=device: x[i], got))


def test_shard_map_with_replicated_params(update):
  mesh = _mesh(AxisType.Auto)
  update.check(
    jax.jit(jax.shard_map(update, mesh=mesh, in_specs=P(), out_specs=P()))(
      *update.inputs
    )
  )


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_named_sharding(update, axis_type):
  inputs = update.sharded(_mesh(axis_type))
  masks, budgets = jax.jit(update)(*inputs)
  update.check((masks, budgets))
  for name in ("a", "b"):
    mine, weights = masks[name].sharding, inputs[0][name].sharding
    assert mine.is_equivalent_to(weights, masks[name].ndim)


def _primitives(jaxpr, inside_cond=False):
  """Names of the primitives that run whatever a cond decides."""
  names = []
  for equation in jaxpr.eqns:
    names.append(equation.primitive.name)
    if equation.primitive.name == "cond":
      continue
    for value in equation.params.values():
      for inner in value if isinstance(value, tuple | list) else (value,):
        inner = getattr(inner, "jaxpr", inner)
        if hasattr(inner, "eqns"):
          names += _primitives(inner)
  return names


def test_vmap_keeps_an_unbatched_flag_a_cond(update):
  members = _stacked([update.inputs, (*update.member(1), update.state)])

  def flagged(params, grads, state, flag):
    return update(params, grads, state, update_masks=flag)

  population = jax.vmap(flagged, in_axes=(0, 0, 0, None))
  names = _primitives(jax.make_jaxpr(population)(*members, True).jaxpr)
  assert names.count("cond") == 1
  assert "while" not in names
  # A batched step counter cannot: both sides run, and the search with them.
  batched = _primitives(jax.make_jaxpr(jax.vmap(update))(*members).jaxpr)
  assert "while" in batched


def test_traced_arguments_give_each_member_its_own_masks():
  params = {"a": jax.random.normal(jax.random.key(0), (16, 8))}
  grads = {"a": jax.random.normal(jax.random.key(1), (16, 8))}

  def member(seed, density, fraction):
    tx = sj.sparse_evolution(SGD, density, drop_fraction=fraction, seed=seed)
    start = tx.init(params)
    return start.masks["a"], tx.update(grads, start, params, update_masks=True)[1]

  seeds = jnp.array([3, 4, 4, 4], jnp.int32)
  densities = jnp.array([0.3, 0.3, 0.5, 0.5], jnp.float32)
  fractions = jnp.array([0.5, 0.5, 0.5, 0.25], jnp.float32)
  starts, ends = jax.jit(jax.vmap(member))(seeds, densities, fractions)
  budgets = [38, 38, 64, 64]  # round(density * 128)
  assert starts.sum((1, 2)).tolist() == budgets
  assert ends.masks["a"].sum((1, 2)).tolist() == budgets
  assert np.any(starts[0] != starts[1])  # its own seed
  assert np.array_equal(starts[2], starts[3])
  # A regrown weight may be one that was just dropped: fewer weights move, not more.
  moved = np.sum(starts & ~ends.masks["a"], (1, 2))
  assert np.all((moved > 0) & (moved <= np.array([19, 19, 32, 16])))
  assert moved[2] > moved[3]  # its own fraction
  alone = jax.jit(member)
  for i in range(4):
    start, end = alone(seeds[i], densities[i], fractions[i])
    np.testing.assert_array_equal(start, starts[i])
    mine = jax.tree.map(lambda x, i=i: x[i], ends)
    chex.assert_trees_all_equal(end, mine)
  # And a program for which they are constants gives the same.
  start, end = member(3, 0.3, 0.5)
  np.testing.assert_array_equal(start, starts[0])
  np.testing.assert_array_equal(end.masks["a"], ends.masks["a"][0])
