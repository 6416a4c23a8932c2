"""Attention's kernels, torch's layouts and stacks on any axis, under the methods."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj
from sparsejax.core._kernel_axes import layer_axes, layer_shapes
from sparsejax.core._sharding import uniform_like

SGD = optax.sgd(0.1, momentum=0.9)


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def attention():
  """Two kernels of attention as flax has them, without biases: d = 64, 8 heads of 8."""
  return {"query": {"kernel": normal(64, 8, 8)}, "out": {"kernel": normal(8, 8, 64)}}


def first_masks(params, density, **kwargs):
  tx = sj.static_sparse(optax.sgd(0.1), density, **kwargs)
  return jax.device_get(sj.masks(tx.init(params)))


def test_every_group_of_four_inputs_holds_two():
  masks = first_masks(attention(), 0.5, structure=sj.n_m(2, 4))
  assert (masks["query"]["kernel"].reshape(16, 4, 8, 8).sum(1) == 2).all()
  assert (masks["out"]["kernel"].reshape(8, 2, 4, 64).sum(2) == 2).all()


def test_every_neuron_has_a_quarter_of_its_inputs():
  masks = first_masks(attention(), 0.25, structure=sj.constant_fan_in())
  assert (masks["query"]["kernel"].sum(0) == 16).all()
  assert (masks["out"]["kernel"].sum((0, 1)) == 16).all()


def test_erk_takes_attention_for_matrices():
  block = {
    "attention": {
      n: {"kernel": jnp.ones((64, 8, 8))} for n in ("query", "key", "value")
    },
    "up": {"kernel": jnp.ones((64, 256))},
    "down": {"kernel": jnp.ones((256, 64))},
  }
  block["attention"]["out"] = {"kernel": jnp.ones((8, 8, 64))}
  shapes = layer_shapes(layer_axes(block, [True] * 6))
  live = dict(zip(shapes, sj.erk(shapes, 0.1).tolist(), strict=True))
  # 4 kernels of 64 + 64 and 2 of 64 + 256 share a tenth of 4 * 4,096 + 2 * 16,384.
  total, shares = round(0.1 * 49_152), 4 * 128 + 2 * 320
  assert [total * n // shares for n in (128, 320)] == [546, 1365]
  assert live.pop("down/kernel") == 1366  # the largest remainder, the first of two
  assert live.pop("up/kernel") == 1365
  assert list(live.values()) == [546] * 4


def test_channels_are_places_of_heads_or_whole_heads():
  masks = first_masks(attention(), 0.5, structure=sj.channel())
  query = masks["query"]["kernel"]
  assert set(np.unique(query.sum(0))) == {0, 64}
  # Not the same places of every head.
  assert len({tuple(places) for places in query.any(0).tolist()}) > 1
  # The places within a head as taps: a channel is a head.
  heads = {"query": sj.KernelAxes(0, 1)}
  masks = first_masks(attention(), 0.5, structure=sj.channel(), input_axes=heads)
  query = masks["query"]["kernel"]
  assert sorted(query.sum((0, 2)).tolist()) == [0] * 4 + [512] * 4


def run(make, params, steps=2):
  """Masks at first and after each mask update, on the host."""
  tx = make()
  state, update, found = tx.init(params), jax.jit(tx.update), []
  for i in range(steps + 1):
    found.append(jax.device_get(sj.masks(state)))
    grads = jax.tree.map(lambda p, i=i: jnp.sin(p * (i + 2)), params)
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
  assert int(sj.skipped_updates(state)) == 0
  return found, state


def _draw_rows_first(stacked):
  """Random numbers that do not depend on where layers are stacked."""

  def draw(key, x):
    if x.ndim < 3:
      return uniform_like(key, x)
    moved = jnp.moveaxis(x, stacked, range(len(stacked)))
    return jnp.moveaxis(uniform_like(key, moved), range(len(stacked)), stacked)

  return draw


METHODS = {
  "sparse_momentum": (sj.sparse_momentum, {}),
  "per_neuron": (sj.sparse_momentum, {"per_neuron": True}),
  "rigl_fan_in": (sj.rigl, {"structure": sj.constant_fan_in()}),
  "global": (sj.global_magnitude, {"end_step": 3}),
  "dsr": (sj.dsr, {"threshold": 0.3}),
  "block": (sj.sparse_momentum, {"structure": sj.block((2, 2))}),
  "erk": (sj.gradual_magnitude, {"end_step": 3, "distribution": sj.erk}),
  "sign": (sj.sparse_evolution, {}),
  "top_kast": (sj.top_kast, {}),
}
QUICK = ("per_neuron", "global")


def _method_params():
  for name in METHODS:
    yield pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)


@pytest.mark.parametrize("name", list(_method_params()))
@pytest.mark.parametrize("stacked", [(1,), pytest.param((2,), marks=pytest.mark.slow)])
def test_layers_stacked_on_any_axis_train_as_on_the_first(name, stacked, monkeypatch):
  method, kwargs = METHODS[name]
  # The one program that outlives its optimizer, and with it how it draws.
  forget = sys.modules["sparsejax.transforms._start"].start.clear_cache
  leading = {"L": {"kernel": normal(5, 8, 6)}, "head": {"kernel": normal(6, 4)}}
  other = {
    "L": {"kernel": jnp.moveaxis(leading["L"]["kernel"], 0, stacked[0])},
    "head": leading["head"],
  }
  found = []
  for params, axis in ((leading, (0,)), (other, stacked)):
    for module in ("transforms._start", "scores._random"):
      module = sys.modules[f"sparsejax.{module}"]
      monkeypatch.setattr(module, "uniform_like", _draw_rows_first(axis))
    forget()
    make = functools.partial(
      method, SGD, 0.4, update_every=1, stacked={"L/": axis}, **kwargs
    )
    masks, state = run(make, params)
    found.append(([m["L"]["kernel"] for m in masks], state.budgets))
  forget()
  (first, budgets), (second, others) = found
  np.testing.assert_array_equal(
    np.ravel(budgets["L"]["kernel"]), np.ravel(others["L"]["kernel"])
  )
  for a, b in zip(first, second, strict=True):
    np.testing.assert_array_equal(a, np.moveaxis(b, stacked[0], 0))


def test_each_layer_of_a_scan_over_axis_one_has_its_budget():
  params = {"L": {"kernel": normal(16, 8, 32)}}
  tx = sj.static_sparse(SGD, 0.1, stacked={"L/": 1})
  state = tx.init(params)
  # 410 in all: 51 each and two to spare.
  live = np.asarray(sj.masks(state)["L"]["kernel"]).sum((0, 2))
  assert live.tolist() == [52, 52] + [51] * 6
  np.testing.assert_array_equal(np.ravel(state.budgets["L"]["kernel"]), live)
  # Masks from elsewhere, packed ones and dense ones count layer by layer.
  masks = jnp.zeros((16, 8, 32), bool).at[:2, 3].set(True)
  state = sj.with_masks(state, {"L": {"kernel": masks}})
  assert np.ravel(state.budgets["L"]["kernel"]).tolist() == [0, 0, 0, 64, 0, 0, 0, 0]
  assert np.ravel(sj.densify(state).budgets["L"]["kernel"]).tolist() == [512] * 8
  packed = sj.packed_masks(tx)
  state = packed.init(params)
  _, state = jax.jit(packed.update)(params, state, params)
  live = np.asarray(sj.masks(state)["L"]["kernel"]).sum((0, 2))
  assert live.tolist() == [52, 52] + [51] * 6
  assert "8x32" in sj.summary(params, sj.masks(state))
  shuffled = sj.shuffle_masks(sj.masks(state), jax.random.key(0), stacked={"L/": 1})
  np.testing.assert_array_equal(shuffled["L"]["kernel"].sum((0, 2)), live)


def test_nested_scans_have_a_budget_per_layer():
  params = {"L": {"kernel": normal(2, 16, 4, 8)}, "head": {"kernel": normal(8, 4)}}
  tx = sj.rigl(SGD, 0.25, update_every=1, stacked={"L/": (0, 2)})
  masks, state = run(lambda: tx, params)
  for mask in masks:
    assert (mask["L"]["kernel"].sum((1, 3)) == 32).all()
  assert state.budgets["L"]["kernel"].shape == (2, 1, 4)
  assert not np.array_equal(masks[0]["L"]["kernel"], masks[-1]["L"]["kernel"])


def test_torch_layouts_have_their_inputs_second():
  params = {
    "fc": {"weight": normal(6, 8), "bias": jnp.ones(6)},
    "conv": {"weight": normal(6, 4, 3, 3)},
  }
  masks = first_masks(params, 0.5, structure=sj.n_m(2, 4))
  assert (masks["fc"]["weight"].reshape(6, 2, 4).sum(2) == 2).all()
  masks = first_masks(params, 0.5, structure=sj.constant_fan_in())
  assert (masks["fc"]["weight"].sum(1) == 4).all()
  assert (masks["conv"]["weight"].sum((1, 2, 3)) == 18).all()
  # (3 + 3 + 4 + 6) : (8 + 6) of 132, for (6, 4, 3, 3) and (6, 8); the second is full.
  masks = first_masks(params, 0.5, distribution=sj.erk)
  assert [int(m.sum()) for m in jax.tree.leaves(masks)] == [84, 48]


def test_growth_per_neuron_takes_attention_for_a_matrix():
  def live(shape, **kwargs):
    x = np.random.default_rng(0).normal(size=(16, 12)).astype(np.float32)
    make = functools.partial(
      sj.sparse_momentum, SGD, 0.3, update_every=1, per_neuron=True, **kwargs
    )
    masks, _ = run(make, {"query": jnp.asarray(x.reshape(shape))})
    return [m["query"].reshape(16, 12) for m in masks]

  for one, two in zip(live((16, 3, 4)), live((16, 12)), strict=True):
    np.testing.assert_array_equal(one, two)


def test_random_values_of_grown_weights_have_the_variance_of_the_fan_in():
  """Attention's query of 400 inputs, in two stacked layers: never of 2 * 400 * 5."""
  params = {"query": {"kernel": jnp.ones((2, 400, 5, 20))}}
  tx = sj.rigl(optax.sgd(0.0), 0.1, update_every=1, stacked="query", grow_init="random")
  state = tx.init(params)
  before = sj.masks(state)["query"]["kernel"]
  updates, state = jax.jit(tx.update)(
    jax.tree.map(lambda p: p * normal(*p.shape), params), state, params
  )
  grown = sj.masks(state)["query"]["kernel"] & ~before
  values = np.asarray(optax.apply_updates(params, updates)["query"]["kernel"])[grown]
  assert len(values) > 1000
  assert np.std(values) == pytest.approx(400**-0.5, rel=0.1)
  scores = sj.init_scores(params, jax.random.key(0), stacked="query")
  assert float(jnp.max(scores["query"]["kernel"])) == pytest.approx(0.05, rel=1e-3)


def test_pruning_at_initialization_knows_axes():
  params = {"query": {"kernel": normal(8, 2, 4)}, "proj": {"kernel": normal(2, 4, 8)}}
  kwargs = {"structure": sj.constant_fan_in(), "distribution": sj.uniform}
  with pytest.raises(ValueError, match=r"input_axes must say .*'proj/kernel'"):
    sj.masks_from_scores(params, 0.5, **kwargs)
  masks = sj.masks_from_scores(
    jax.tree.map(jnp.abs, params), 0.5, input_axes={"proj": (0, 1)}, **kwargs
  )
  assert (masks["query"]["kernel"].sum(0) == 4).all()
  assert (masks["proj"]["kernel"].sum((0, 1)) == 4).all()

  def loss(params, x):
    y = jnp.einsum("nd,dhk->nhk", x, params["query"]["kernel"])
    return jnp.sum(jnp.einsum("nhk,hkd->nd", y, params["proj"]["kernel"]) ** 2)

  masks = sj.snip(
    loss, params, [normal(3, 8)], 0.5, input_axes={"proj": (0, 1)}, **kwargs
  )
  assert (masks["proj"]["kernel"].sum((0, 1)) == 4).all()


def test_isometric_refuses_what_it_would_not_find():
  params = {"conv": {"kernel": normal(3, 5, 3, 4, 4)}}
  with pytest.raises(ValueError, match="isometric must be used for kernels of axes"):
    sj.isometric(SGD, 0.5, stacked={"conv": 1}).init(params)
