"""States with boxes, optax placeholders, serialization, and their own buffers."""

import functools
import re
from typing import Any

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.linen import spmd
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import sparsejax as sj
from sparsejax import lottery, supermasks

SGD = optax.sgd(0.1, momentum=0.9)
DUE: dict[str, Any] = {"density": 0.5, "update_every": 1}
RIGL = functools.partial(sj.rigl, **DUE)
OTHERS = {
  "straight_through": lambda inner: sj.straight_through(inner, **DUE),
  "sr_ste": lambda inner: sj.sr_ste(inner, **DUE),
  "s_ste": lambda inner: sj.s_ste(inner, **DUE),
  "gates": lambda inner: sj.continuous_sparsification(inner, **DUE, end_step=2),
  "spartan": lambda inner: sj.spartan(inner, **DUE, end_step=9),
  "top_kast": lambda inner: sj.top_kast(inner, **DUE),
  "isometric": lambda inner: sj.isometric(inner, **DUE),
  "grown": lambda inner: sj.initialize_grown(RIGL(inner), "random"),
  "from_initial": lambda inner: sj.initialize_grown(RIGL(inner), "initial"),
  "packed": lambda inner: sj.packed_masks(RIGL(inner)),
  "explored": lambda inner: sj.track_exploration(RIGL(inner)),
  "by_path": lambda inner: sj.by_path(inner, {"Dense_0/kernel": RIGL}),
  "supermask": lambda inner: supermasks.edge_popup(inner, 0.5),
  "multi_steps": lambda inner: optax.MultiSteps(RIGL(inner), 2),
  "chain": lambda inner: optax.chain(optax.clip(1.0), RIGL(inner)),
}
SHAPES = {"Dense_0": (8, 16), "Dense_1": (16, 8)}


def _params(make=lambda shape: jnp.ones(shape)):
  return {k: {"kernel": make(s), "bias": make(s[1:])} for k, s in SHAPES.items()}


@pytest.fixture
def methods(harness):
  """Every method of the contract table, and what wraps or replaces them."""
  return {str(m): m for m in harness.METHODS} | OTHERS


class Boxed(nn.Module):
  """Kernels and biases in boxes, as flax's language-model examples have them."""

  box: Any = nn.with_logical_partitioning

  @nn.compact
  def __call__(self, x):
    for name, axes in (("Dense_0", ("embed", "mlp")), ("Dense_1", ("mlp", "embed"))):
      if self.box is nn.with_partitioning:
        axes = tuple(RULES[axis] for axis in axes)
      kernel_init = self.box(nn.initializers.lecun_normal(), axes)
      bias_init = self.box(nn.initializers.ones_init(), axes[1:])
      features = SHAPES[name][1]
      x = nn.Dense(features, kernel_init=kernel_init, bias_init=bias_init, name=name)(x)
    return x


RULES = {"embed": "data", "mlp": "model"}
X = jnp.ones((4, 8))


def _mesh():
  types = (jax.sharding.AxisType.Auto,) * 2
  return jax.make_mesh((4, 2), ("data", "model"), axis_types=types)


def _boxes(tree):
  is_box = lambda node: isinstance(node, (nn.Partitioned, nnx.Variable))
  return [b for b in jax.tree.leaves(tree, is_leaf=is_box) if is_box(b)]


def test_only_what_has_a_kernels_shape_lies_in_its_box(methods):
  params = jax.eval_shape(Boxed().init, jax.random.key(0), X)["params"]
  for name, method in methods.items():
    state = jax.eval_shape(method(SGD).init, params)
    boxes = _boxes(state)
    assert boxes, name
    assert all(jax.tree.leaves(box) for box in _boxes(sj.masks(state))), name
    for box in boxes:
      leaves = jax.tree.leaves(box)
      if not leaves:  # optax's own, in the states of a partition
        continue
      [leaf] = leaves
      assert len(leaf.shape) == len(box.names), name
      assert leaf.shape in {p.shape for p in jax.tree.leaves(params)}, name


@pytest.mark.parametrize(
  ("box", "wrap"),
  [
    (nn.with_logical_partitioning, lambda tx: tx),
    (nn.with_partitioning, sj.packed_masks),
  ],
  ids=["logical", "mesh_axes_packed"],
)
def test_boxed_params_train(box, wrap):
  """As flax's examples do: specs of an abstract state, then `jit(out_shardings=)`."""
  mesh, model = _mesh(), Boxed(box)
  tx = wrap(sj.sparse_momentum(optax.sgd(0.1), 0.25, update_every=2))

  def init(key):
    params = model.init(key, X)["params"]
    return TrainState.create(apply_fn=model.apply, params=params, tx=tx)

  specs = nn.get_partition_spec(jax.eval_shape(init, jax.random.key(0)))
  rules = {"data": "data", "model": "model"} if wrap is sj.packed_masks else RULES
  places = spmd.logical_to_mesh_sharding(specs, mesh, tuple(rules.items()))
  state = jax.jit(init, out_shardings=places)(jax.random.key(0))
  wanted = NamedSharding(mesh, P("data", "model"))
  kinds = [state.params] + [sj.masks(state.opt_state)] * (wrap is not sj.packed_masks)
  for tree in kinds:
    [kernel] = jax.tree.leaves(tree["Dense_0"]["kernel"])
    assert kernel.sharding == wanted

  @jax.jit
  def step(state):
    loss = lambda p: jnp.sum((state.apply_fn({"params": p}, X) - 1) ** 2)
    return state.apply_gradients(grads=jax.grad(loss)(state.params))

  # The examples take the boxes off before they train; others leave them on.
  for start in (state, nn.unbox(state)):
    end = step(step(start))
    assert jax.tree.structure(end) == jax.tree.structure(start)
    masks = sj.masks(end.opt_state)
    assert sum(int(m.sum()) for m in jax.tree.leaves(masks)) == 64  # of 256
    masked = sj.apply_masks(end.params, masks)
    chex.assert_trees_all_equal(masked, end.params)
    [total] = re.findall("^sparsified .*", sj.summary(end.params, masks), re.MULTILINE)
    assert total.split() == ["sparsified", "256", "64", "0.2500"]
    again = sj.with_masks(end.opt_state, masks)
    chex.assert_trees_all_equal(again, end.opt_state)


def test_nnx_metadata_under_a_mesh():
  mesh = _mesh()
  init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("data", "model"))
  with jax.set_mesh(mesh):
    model = nnx.Linear(8, 16, kernel_init=init, rngs=nnx.Rngs(0))
    tx = sj.rigl(SGD, 0.25, update_every=1)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = nnx.grad(lambda m: jnp.sum((m(X) - 1) ** 2))(model)
    optimizer.update(model, grads)
  [mask] = jax.tree.leaves(sj.masks(optimizer.opt_state))
  assert mask.sharding.is_equivalent_to(NamedSharding(mesh, P("data", "model")), 2)
  assert int(mask.sum()) == 32
  assert not np.any(np.asarray(model.kernel[...])[~np.asarray(mask)])


def test_tree_map_params_reaches_all_that_is_like_the_params(methods):
  """`optax.tree_map_params` maps exactly the arrays shaped like params."""
  params = _params()
  for name, method in methods.items():
    tx = method(SGD)
    state = tx.init(params)
    marked = optax.tree_map_params(
      tx, lambda x: "like", state, transform_non_params=lambda x: "other"
    )
    shapes = set(jax.tree.leaves(jax.tree.map(lambda p: str(p.shape), params)))
    pairs = jax.tree.map(lambda mark, part: (mark, part), marked, state)
    is_pair = lambda node: (
      isinstance(node, tuple) and node[:1] in (("like",), ("other",))
    )
    for mark, part in jax.tree.leaves(pairs, is_leaf=is_pair):
      found = {str(x.shape) for x in jax.tree.leaves(part)}
      assert (found <= shapes) == (mark == "like") or not found, (name, mark, found)
    plain = optax.tree_map_params(tx, lambda x: x, state)
    assert jax.tree.structure(plain) == jax.tree.structure(state), name


def test_tree_map_params_takes_specs():
  params, tx = _params(), sj.sparse_momentum(optax.sgd(0.1), 0.5)
  state = tx.init(params)
  specs = _params(lambda shape: P(*"ab"[: len(shape)]))
  found: Any = optax.tree_map_params(
    tx,
    lambda leaf, spec: spec,
    state,
    specs,
    transform_non_params=lambda _: P(),
    is_leaf=lambda leaf: leaf is None,
  )
  assert found.masks == found.average == specs
  assert found.budgets == found.count == P()


def test_an_empty_tree_is_still_refused():
  for empty in ({}, (), nnx.State({})):
    with pytest.raises(ValueError, match="params must contain at least one array"):
      RIGL(SGD).init(empty)


def test_states_survive_flax_serialization(methods):
  params = _params(lambda shape: jnp.arange(np.prod(shape), dtype=float).reshape(shape))
  for name, method in methods.items():
    tx = method(SGD)
    state = tx.init(params)
    blank = jax.tree.map(jnp.zeros_like, state)
    data = flax.serialization.to_bytes(state)
    restored = flax.serialization.from_bytes(blank, data)
    assert jax.tree.structure(restored) == jax.tree.structure(state), name
    chex.assert_trees_all_equal(restored, state)


# Methods with branches of their own; the others share the one of `sparsify`.
BRANCHES = ("rigl", "deep_r", "isometric", "grown", "straight_through")


@pytest.mark.parametrize(
  "name",
  [
    x if x in BRANCHES[:2] else pytest.param(x, marks=pytest.mark.slow)
    for x in BRANCHES
  ],
)
def test_without_jit_nothing_compiles_after_the_first_steps(
  name, methods, compilations
):
  shape = (3, 3, 4, 4) if name == "isometric" else (8, 4)
  params = {"kernel": jax.random.normal(jax.random.key(0), shape)}
  tx = methods[name](SGD)
  if name in ("rigl", "deep_r"):  # due at every second step
    tx = getattr(sj, name)(SGD, 0.5, update_every=2)
  state = tx.init(params)
  for i in range(6):
    if i == 2:
      assert compilations
      compilations.clear()
    updates, state = tx.update(params, state, params)
    params = optax.apply_updates(params, updates)
  assert not compilations


def test_nothing_of_the_callers_is_donated():
  """Neither masks, seed, nor the weights to rewind to go with a donated step."""
  params = _params()
  masks = {k: {"kernel": jnp.eye(*s, dtype=bool)} for k, s in SHAPES.items()}
  masks = {k: m | {"bias": None} for k, m in masks.items()}
  seed = jnp.int32(3)
  tx = sj.static_sparse(SGD, 0.5, seed=seed)
  starts = {
    "rewind": lottery.rewind(params, masks),
    "init": lottery.mask_zero("init", params, params, masks),
    "moved": lottery.mask_zero("init_if_moved_away", params, params, masks),
    "reinit": lottery.mask_one(
      "reinit", params, masks, jax.random.key(0), fresh=lambda _: params
    ),
    "drawn": sj.reinitialize(
      params, jax.nn.initializers.he_normal(), jax.random.key(0)
    ),
  }
  step = jax.jit(lambda *trees: trees, donate_argnums=(0, 1))
  for name, start in starts.items():
    state = sj.with_masks(tx.init(start), masks)
    step(start, state)
    kept = jax.tree.leaves((params, masks, seed))
    assert not any(x.is_deleted() for x in kept), name
