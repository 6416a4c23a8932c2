"""Every structure under every method: exact counts and moving masks, or a refusal."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sparsejax as sj

SGD = optax.sgd(0.1, momentum=0.9)
SHAPE = (8, 6)


def kernels(*shapes):
  rng = np.random.default_rng(0)
  arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
  return {f"layer{i}": x for i, x in enumerate(arrays)}


def live_per_neuron(mask):
  return mask.reshape(-1, mask.shape[-1]).sum(0)


def is_n_m(mask, n, m):
  return (mask.reshape(mask.shape[0] // m, m, -1).sum(1) == n).all()


def is_strided(mask, n, m):
  return (mask.reshape(m, mask.shape[0] // m, -1).sum(0) == n).all()


def is_blocks(mask):
  blocks = mask.reshape(4, 2, 2, 3).sum((1, 3))
  return set(np.unique(blocks)) <= {0, 6}


def is_channels(mask):
  return set(np.unique(live_per_neuron(mask))) <= {0, 8}


def has_equal_fan_in(mask):
  return len(set(live_per_neuron(mask))) == 1


def has_equal_fan_in_where_live(mask):
  return len({int(n) for n in live_per_neuron(mask) if n}) == 1


STRUCTURES = {
  "n_m": (sj.n_m(2, 4), functools.partial(is_n_m, n=2, m=4)),
  "strided": (sj.n_m(1, 4, groups="strided"), functools.partial(is_strided, n=1, m=4)),
  "block": (sj.block((2, 3)), is_blocks),
  "channel": (sj.channel(-1), is_channels),
  "fan_in": (sj.constant_fan_in(), has_equal_fan_in),
  "ablation": (sj.constant_fan_in(ablation=0.9), has_equal_fan_in_where_live),
}
METHODS = {
  "sparse_momentum": {},
  "rigl": {},
  "sparse_evolution": {},
  "static_sparse": {},
  "gradual_magnitude": {"end_step": 3},
}
REFUSED = {
  ("sparse_momentum", "n_m"): "redistribute .* n_m",
  ("sparse_momentum", "strided"): "redistribute .* n_m",
  ("sparse_momentum", "fan_in"): "redistribute .* constant_fan_in",
  ("sparse_momentum", "ablation"): r"redistribute .* constant_fan_in\(ablation=0.9\)",
  ("static_sparse", "ablation"): "static_sparse .* constant_fan_in",
  ("gradual_magnitude", "ablation"): "prune_to .* constant_fan_in",
}


def make(method, structure, density=None, **kwargs):
  if density is None:
    density = 0.4 if structure.density is None else structure.density
  kwargs = {"update_every": 1, "structure": structure} | METHODS[method] | kwargs
  return getattr(sj, method)(SGD, density, **kwargs)


def steps(tx, params, number=3):
  """The masks and budgets at first and after each step, on the host."""
  state, update = tx.init(params), jax.jit(tx.update)
  found = [jax.device_get((sj.masks(state), state.budgets))]
  for i in range(number):
    rng = np.random.default_rng(i)
    grads = jax.tree.map(
      lambda p, rng=rng: jnp.asarray(rng.normal(size=p.shape), p.dtype), params
    )
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
    found.append(jax.device_get((sj.masks(state), state.budgets)))
  assert int(sj.skipped_updates(state)) == 0
  return found


def _table():
  """All pairs; where another pair runs the same code, compiling takes too long."""
  quick = {("sparse_evolution", "channel"), ("sparse_momentum", "block")}
  quick |= {("gradual_magnitude", name) for name in ("n_m", "fan_in")}
  for method, structure in itertools.product(METHODS, STRUCTURES):
    pair = method, structure
    fast = pair in quick or pair in REFUSED or method == "rigl"
    yield pytest.param(*pair, marks=[] if fast else pytest.mark.slow)


@pytest.mark.parametrize(("method", "structure"), list(_table()))
def test_masks_keep_their_structure_and_move_or_are_refused(method, structure):
  params = kernels(SHAPE, SHAPE)
  structure_, holds = STRUCTURES[structure]
  if (method, structure) in REFUSED:
    with pytest.raises(ValueError, match=REFUSED[method, structure]):
      make(method, structure_).init(params)
    return
  found = steps(make(method, structure_), params)
  for masks, budgets in found:
    for name, mask in masks.items():
      assert mask.sum() == budgets[name]
  dense_first = method == "gradual_magnitude"
  for masks, _ in found[-1 if dense_first else 0 :]:
    assert all(holds(mask) for mask in masks.values())
  totals = [sum(int(b) for b in budgets.values()) for _, budgets in found]
  if structure == "ablation":
    assert totals == sorted(totals, reverse=True)
  elif not dense_first:
    assert len(set(totals)) == 1
  wanted = (structure_.density or 0.4) * 96
  assert abs(totals[-1] - wanted) <= {"ablation": 12}.get(structure, 4)
  moved = any(
    (a[0][k] != b[0][k]).any() for a, b in itertools.pairwise(found) for k in params
  )
  assert moved is (method != "static_sparse")


def test_rigl_changes_masks_under_n_m():
  """JaxPruner's RigL leaves every mask as it was: drop and grow undo each other."""
  tx = make("rigl", sj.n_m(1, 4), drop_fraction=0.5)
  (first, _), (second, _) = steps(tx, kernels(SHAPE), 1)
  changed = first["layer0"] != second["layer0"]
  # Half of the twelve live weights make room; some come back, as best of their group.
  assert 2 <= changed.sum() <= 12
  assert is_n_m(second["layer0"], 1, 4)


def test_blocks_of_convolutions_have_the_density_asked_for():
  """JaxPruner cuts blocks of a convolution from its taps: density 1."""
  tx = make("rigl", sj.block((4, 4)), density=0.25)
  (masks, _), (moved, _) = steps(tx, kernels((3, 3, 8, 8)), 1)
  for mask in (masks["layer0"], moved["layer0"]):
    blocks = mask.reshape(3, 3, 2, 4, 2, 4).sum((3, 5))
    assert set(np.unique(blocks)) == {0, 16}
    assert mask.sum() == 9 * 16
  assert (masks["layer0"] != moved["layer0"]).any()


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"density": 0.4}, r"density must be 0.5 or None .* n_m\(2, 4"),
    ({"density": 0.5, "distribution": sj.erk}, "distribution must be uniform"),
    ({"density": jnp.float32(0.5)}, "density must be 0.5 or None"),
  ],
)
@pytest.mark.parametrize("method", ["rigl", "gradual_magnitude"])
def test_what_n_m_fixes_cannot_be_said_otherwise(method, kwargs, message):
  with pytest.raises(ValueError, match=message):
    make(method, sj.n_m(2, 4), end_step=300, **kwargs).init(kernels(SHAPE))


def test_n_m_knows_its_density():
  for method in ("rigl", "gradual_magnitude"):
    state = getattr(sj, method)(SGD, None, structure=sj.n_m(2, 4), end_step=300)
    state = state.init(kernels(SHAPE))
    assert int(state.budgets["layer0"]) == (24 if method == "rigl" else 48)


def test_other_things_that_do_not_go_together():
  rigl = functools.partial(sj.rigl, SGD, 0.5)
  with pytest.raises(TypeError, match="structure must be a Structure"):
    rigl(structure=(2, 4))
  with pytest.raises(ValueError, match=r"multiple of 4 .* \(6, 8\) at 'layer0'") as e:
    rigl(structure=sj.n_m(2, 4)).init(kernels((6, 8)))
  assert e.value.__notes__ == ["To leave 'layer0' dense, exclude it by where=."]
  with pytest.raises(ValueError, match=r"units of one size.*channel\(-1\)"):
    make("sparse_momentum", sj.channel(-1)).init(kernels((8, 6), (4, 6)))

  def mine(inputs, topology, state):
    return topology, state

  own = sj.chain(sj.MaskTransform(lambda params: (), mine))
  with pytest.raises(ValueError, match=r"does not know structures.*n_m"):
    sj.sparsify(SGD, own, 0.5, structure=sj.n_m(2, 4)).init(kernels(SHAPE))
  one_shot = sj.prune_to(sj.magnitude, 0.5)
  with pytest.raises(ValueError, match=r"distribution must be given .* block"):
    sj.sparsify(SGD, one_shot, structure=sj.block((2, 3))).init(kernels(SHAPE))


def test_density_may_be_traced_and_layers_stacked():
  params = kernels((2, *SHAPE))

  @jax.jit
  def masks(density, seed):
    tx = make("rigl", sj.block((2, 3)), density=density, stacked="", seed=seed)
    state = tx.init(params)
    _, state = tx.update(params, state, params)
    return sj.masks(state)["layer0"], state.budgets["layer0"]

  for density, blocks in ((0.25, 2), (0.5, 4)):
    mask, budgets = map(np.asarray, masks(jnp.float32(density), jnp.int32(3)))
    assert budgets.tolist() == [6 * blocks] * 2
    assert all(is_blocks(layer) and layer.sum() == 6 * blocks for layer in mask)


COLLECTIVE = re.compile(r"= .*? (all-gather|all-to-all|collective-permute)\S*\(")
SHARDED = {
  "n_m": (sj.n_m(2, 4), P("data", "model")),
  "strided": (sj.n_m(1, 4, groups="strided"), P(None, "model")),
  "block": (sj.block((4, 4)), P("data", "model")),
  "channel": (sj.channel(-1), P("data", "model")),
  "ablation": (sj.constant_fan_in(ablation=0.9), P("data", "model")),
}


def _placements():
  """All structures on all kinds of axes; a few of them where time is short."""
  quick = {("n_m", AxisType.Auto), ("channel", AxisType.Explicit)}
  quick |= {("ablation", AxisType.Auto), ("block", AxisType.Explicit)}
  for pair in itertools.product(SHARDED, (AxisType.Auto, AxisType.Explicit)):
    yield pytest.param(*pair, marks=[] if pair in quick else pytest.mark.slow)


@pytest.mark.parametrize(("name", "axis_type"), list(_placements()))
def test_sharded_kernels_stay_where_they_are(name, axis_type):
  structure, spec = SHARDED[name]
  mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
  params = kernels((64, 32))
  placed = jax.device_put(params, NamedSharding(mesh, spec))
  tx = make("rigl", structure)
  state = tx.init(placed)
  step = jax.jit(tx.update).lower(placed, state, placed).compile()
  # A vector of counts may be collected, of neurons or of nothing: never the kernel.
  for line in step.as_text().splitlines():
    if COLLECTIVE.search(line):
      sizes = [
        np.prod([int(n) for n in dims.split(",") if n], dtype=int)
        for dims in re.findall(r"\w+\[([\d,]*)\]", line.split("(")[0])
      ]
      assert max(sizes) <= 32, line
  masks = sj.masks(step(placed, state, placed)[1])["layer0"]
  assert masks.sharding.is_equivalent_to(placed["layer0"].sharding, 2)
  alone = tx.init(params)
  expected = sj.masks(jax.jit(tx.update)(params, alone, params)[1])["layer0"]
  np.testing.assert_array_equal(masks, expected)
