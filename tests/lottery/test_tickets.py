"""Pruning, rewinding, criteria and actions, by tables worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj
from sparsejax import lottery, second_order

LENET = {"dense1": 235_200, "dense2": 30_000, "dense3": 1_000}


def test_the_ladder_of_the_paper():
  """Rounds 3, 7, 9, 15, 18, 20 of 20 %, and 10 % of the output, on all layers."""
  steps = lottery.ladder(LENET, 0.2, 20, {"dense3": 0.1})
  percent = {
    r: round(100 * sum(steps[r].values()) / 266_200, 2) for r in (3, 7, 9, 15, 18, 20)
  }
  assert percent == {3: 51.28, 7: 21.07, 9: 13.52, 15: 3.58, 18: 1.85, 20: 1.19}
  # 235200 - 47040, - 37632, - 30106 (of 30105.6); 1000 - 100, - 90, - 81.
  assert list(steps[3].values()) == [120_422, 15_360, 729]
  assert steps[0] == LENET


def test_prune_climbs_down_the_ladder():
  shapes = {"dense1": (30, 17), "dense2": (17, 10)}
  keys = jax.random.split(jax.random.key(0), 2)
  params = {
    n: {"kernel": jax.random.normal(k, s), "bias": jnp.ones(s[1])}
    for (n, s), k in zip(shapes.items(), keys, strict=True)
  }
  masks = lottery.dense_masks(params)
  assert masks["dense1"]["bias"] is None
  rates = {"dense2": 0.1}
  prune = jax.jit(lambda p, m: lottery.prune(p, m, 0.2, rates=rates))
  steps = lottery.ladder({"dense1": 510, "dense2": 170}, 0.2, 4, rates)
  for expected in steps[1:]:
    before = masks
    masks = jax.device_get(prune(params, masks))
    assert {n: int(masks[n]["kernel"].sum()) for n in masks} == expected
    for name in shapes:
      kept, old = masks[name]["kernel"], np.asarray(before[name]["kernel"])
      assert not (kept & ~old).any()
      size = np.abs(params[name]["kernel"])
      assert size[kept].min() >= size[old & ~kept].max()


def test_scope_and_score():
  params = {"a": jnp.array([[5.0, 1.0, 4.0]]), "b": jnp.array([[-3.0, 2.0, 6.0]])}
  masks = {"a": jnp.array([[True, True, True]]), "b": jnp.array([[True, True, False]])}
  kept = lottery.prune(params, masks, 0.4, scope="global")  # 2 of 5
  assert kept["a"].tolist() == [[True, False, True]]
  assert kept["b"].tolist() == [[True, False, False]]
  small = lottery.prune(
    params, masks, 0.5, score=lambda p, m: jax.tree.map(lambda x: -jnp.abs(x), p)
  )
  assert small["a"].tolist() == [[False, True, False]]  # 1.5 goes to 2, half to even
  assert small["b"].tolist() == [[False, True, False]]


STACK = {"w": jnp.arange(1.0, 25.0).reshape(2, 3, 4), "x": jnp.array([[1.0, 2.0]])}
LAYERS = {"w0": STACK["w"][0], "w1": STACK["w"][1], "x": STACK["x"]}


def test_layers_of_a_stack_are_pruned_by_themselves():
  # Layer 0 has the weights 1 to 12, layer 1 the weights 13 to 24, of which 8 are live.
  masks = {"w": jnp.ones((2, 3, 4), bool).at[1, 0].set(False), "x": STACK["x"] > 0}
  alone = {"w0": masks["w"][0], "w1": masks["w"][1], "x": masks["x"]}
  rates = {"w": 0.3}
  kept = lottery.prune(STACK, masks, 0.5, rates=rates, stacked="w")
  # 12 - round(3.6) = 8 and 8 - round(2.4) = 6; of both together 20 - 6 = 14.
  assert kept["w"].reshape(2, 12).astype(int).tolist() == [
    [0] * 4 + [1] * 8,
    [0] * 6 + [1] * 6,
  ]
  found = lottery.prune(LAYERS, alone, 0.5, rates=rates)
  np.testing.assert_array_equal(kept["w"], jnp.stack([found["w0"], found["w1"]]))
  np.testing.assert_array_equal(kept["x"], found["x"])
  together = lottery.prune(STACK, masks, 0.5, rates=rates)["w"]
  assert together.sum((1, 2)).tolist() == [6, 8]
  # Along another axis; over all layers, where none of a stack may be emptied either.
  turned = [{**tree, "w": jnp.moveaxis(tree["w"], 0, 1)} for tree in (STACK, masks)]
  again = lottery.prune(*turned, 0.5, rates=rates, stacked={"w": 1})
  np.testing.assert_array_equal(jnp.moveaxis(again["w"], 1, 0), kept["w"])
  score = lambda p, m: {**p, "x": p["x"] + 99}
  with pytest.raises(ValueError, match=r"every layer, got 0\.6 of the 12 in 'w/0'"):
    lottery.prune(STACK, masks, 0.6, scope="global", score=score, stacked="w")
  count = lottery.prune(STACK, masks, 0.6, scope="global", score=score)["w"].sum()
  assert int(count) == 7  # 22 - round(13.2), of which "x" has 2


def test_a_traced_fraction_prunes_alike():
  params = {"a": jnp.arange(1.0, 11.0).reshape(2, 5)}
  masks = lottery.dense_masks(params)
  fractions = jnp.array([0.2, 0.5, 0.999])
  several = jax.vmap(lambda f: lottery.prune(params, masks, f))(fractions)["a"]
  assert several.sum((1, 2)).tolist() == [8, 5, 1]  # the last one stays
  one = lottery.prune(params, masks, 0.2)["a"]
  np.testing.assert_array_equal(several[0], one)


@pytest.mark.parametrize(
  ("kwargs", "match"),
  [
    ({"fraction": 0.0}, r"fraction must be in \(0, 1\), got 0.0"),
    ({"fraction": 1.0}, r"fraction must be in \(0, 1\), got 1.0"),
    ({"rates": {"a": 2.0}}, r"rates\['a'\] must be in \(0, 1\), got 2.0"),
    ({"rates": {"c": 0.1}}, "rates must match layers, got 'c'"),
    ({"fraction": 0.9}, "leave a live weight in every layer, got 0.9 of the 2 in 'a'"),
    ({"fraction": 0.7, "scope": "global"}, "leave a live weight in every layer"),
    ({"scope": "net"}, "scope must be one of"),
    ({"scope": "global", "rates": {"a": 0.1}}, "rates must be empty with scope"),
    ({"score": lambda p, m: {**p, "a": p["a"] * jnp.nan}}, "score must be below"),
  ],
)
def test_bad_pruning(kwargs, match):
  params = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[3.0, 4.0]])}
  with pytest.raises(ValueError, match=match):
    lottery.prune(params, lottery.dense_masks(params), **kwargs)


@pytest.mark.parametrize(
  ("function", "args", "kwargs", "match"),
  [
    (lottery.ladder, (LENET, "x"), {}, "fraction must be a number, got 'x'"),
    (lottery.ladder, (LENET,), {"rounds": 1.5}, "rounds must be an integer, got 1.5"),
    (lottery.ladder, (LENET,), {"rates": [1]}, "rates must be a mapping from a regex"),
    (lottery.keep_rate, (0.5, 1.5), {}, "rounds must be an integer, got 1.5"),
    (lottery.prune, (LENET, jnp.ones(3)), {}, "masks must be bool, got float32"),
    (lottery.prune, ({}, {}), {"score": 3}, r"score must be a function of \(params"),
    (lottery.criterion, (3, {}, {}, {}), {}, "name must be a criterion's, got 3"),
    (lottery.mask_one, ("rewind", {}, {}, 3), {}, "key must be a PRNG key"),
    (lottery.error_on_line, (3, {}, {}), {}, "error must be a function of the network"),
  ],
)
def test_wrong_types(function, args, kwargs, match):
  with pytest.raises(TypeError, match=match):
    function(*args, **kwargs)


def test_keep_rate():
  assert lottery.keep_rate(0.2107, 7) ** 7 == pytest.approx(0.2107)
  with pytest.raises(ValueError, match=r"density must be in \(0, 1\], got 0"):
    lottery.keep_rate(0, 7)
  with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
    lottery.keep_rate(0.5, 0)


# w_i and w_f; mean |w_i| is 2.5 and mean |w_f| is 5, so a = 0.5.
INITIAL = jnp.array([[4.0, -3.0, 2.0, 1.0]])
FINAL = jnp.array([[1.0, -8.0, -5.0, 6.0]])
KEPT = {
  "large_final": (1, 3),
  "small_final": (0, 2),
  "large_init": (0, 1),
  "small_init": (2, 3),
  "large_init_large_final": (1, 2),  # min of 4 .5, 3 4, 2 2.5, 1 3
  "small_init_small_final": (2, 3),  # max of the same: 4, 4, 2.5, 3
  "magnitude_increase": (1, 3),  # -3, 5, 3, 5
  "movement": (1, 2),  # 3, 5, 7, 5: the tie goes to the first
  "large_final_same_sign": (1, 3),
  "large_init_diff_sign": (0, 2),  # of the changed one first, then the largest
}


@pytest.mark.parametrize("name", KEPT)
def test_criteria(name):
  live = jnp.ones((1, 4), bool)

  def score(params, masks):
    return lottery.criterion(name, INITIAL, params, masks)

  kept = lottery.prune(FINAL, live, 0.5, score=score)
  assert np.flatnonzero(kept).tolist() == list(KEPT[name])


@pytest.mark.parametrize("name", ["large_final", "small_init", "magnitude_increase"])
def test_criteria_keep_their_order_within_groups_of_signs(name):
  """Of weights that differ in their last bits, as of tiny and of large ones."""
  near = 0.1 + 2.0**-26 * np.arange(4)
  final = np.array([[*near, 1e-9, 2e-9, 1e6, 2e6]], np.float32)
  initial = {"small_init": final, "large_final": final * 0.5}
  initial = jnp.asarray(initial.get(name, np.full_like(final, 1e-9)))
  scores = [
    lottery.criterion(name + suffix, initial, jnp.asarray(final), initial > 0)
    for suffix in ("", "_same_sign", "_diff_sign")
  ]
  order = np.argsort(scores[0][0])
  assert len(np.unique(scores[0])) == 8
  for grouped in scores[1:]:
    np.testing.assert_array_equal(np.argsort(grouped[0]), order)
  # A weight of the other group ranks last, however good.
  worst = lottery.criterion(
    name + "_same_sign", initial.at[0, order[-1]].multiply(-1), final, initial > 0
  )
  assert np.argmin(worst[0]) == order[-1]


def test_criteria_of_float16_do_not_overflow():
  w = jnp.full((1, 4), 3e4, jnp.float16)
  scores = lottery.criterion("large_init_large_final", w, w, w > 0)
  np.testing.assert_array_equal(scores, w)


def test_bad_criteria():
  live = jnp.ones((1, 4), bool)
  with pytest.raises(ValueError, match="name must be one of"):
    lottery.criterion("largest", INITIAL, FINAL, live)
  with pytest.raises(ValueError, match="key must be given"):
    lottery.criterion("random", INITIAL, FINAL, live)
  draw = lottery.criterion("random", INITIAL, FINAL, live, jax.random.key(0))
  assert len(np.unique(draw)) == 4


def test_mask_one_actions():
  """What live weights start from; dead ones are zero, signs stay where asked."""
  params = {"kernel": jnp.array([[4.0, -1.0], [2.0, 7.0]]), "bias": jnp.ones(2)}
  masks = {"kernel": jnp.array([[True, True], [True, False]]), "bias": None}
  key = jax.random.key(3)
  fresh = lambda key: {"kernel": jnp.full((2, 2), 9.0), "bias": jnp.zeros(2)}
  run = lambda action, **kw: lottery.mask_one(action, params, masks, key, **kw)
  assert run("rewind")["kernel"].tolist() == [[4.0, -1.0], [2.0, 0.0]]
  reinit = run("reinit", fresh=fresh)
  assert reinit["kernel"].tolist() == [[9.0, 9.0], [9.0, 0.0]]
  assert reinit["bias"].tolist() == [0.0, 0.0]
  signed = run("reinit", fresh=fresh, keep_signs=True)
  assert signed["kernel"].tolist() == [[9.0, -9.0], [9.0, 0.0]]
  seen = set()
  for seed in range(6):
    k = lottery.mask_one("reshuffle", params, masks, jax.random.key(seed))["kernel"]
    assert float(k[1, 1]) == 0
    assert sorted(k.reshape(-1)[:3].tolist()) == [-1.0, 2.0, 4.0]
    seen.add(tuple(k.reshape(-1).tolist()))
  assert len(seen) > 2
  constant = run("constant", keep_signs=True)["kernel"]
  std = float(np.std([4.0, -1.0, 2.0]))
  np.testing.assert_allclose(constant, [[std, -std], [std, 0.0]], rtol=1e-6)
  with pytest.raises(ValueError, match="action must be one of"):
    run("rewound")
  with pytest.raises(ValueError, match="fresh must be given"):
    run("reinit")


def test_mask_zero_actions():
  initial, final = jnp.array([[1.0, -2.0, 3.0]]), jnp.array([[0.5, 4.0, 9.0]])
  masks = jnp.array([[False, False, True]])
  values = {
    action: lottery.mask_zero(action, initial, final, masks).tolist()
    for action in lottery.MASK_ZERO
  }
  assert values == {
    "zero": [[0.0, 0.0, 3.0]],
    "init": [[1.0, -2.0, 3.0]],
    "init_if_moved_away": [[0.0, -2.0, 3.0]],
  }
  with pytest.raises(ValueError, match="action must be one of"):
    lottery.mask_zero("one", initial, final, masks)


def test_frozen_weights_stand_where_they_are():
  inner = optax.sgd(0.1, momentum=0.9)
  tx = lottery.freeze_masked(sj.static_sparse(inner, density=1.0))
  params = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "bias": jnp.zeros(2)}
  masks = {"kernel": jnp.array([[True, False], [False, True]]), "bias": None}
  state = sj.with_masks(tx.init(params), masks)
  for _ in range(3):
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    params = optax.apply_updates(params, updates)
  assert (params["kernel"][0, 1], params["kernel"][1, 0]) == (2.0, 3.0)
  assert float(params["kernel"][0, 0]) < 1
  assert float(params["bias"][0]) < 0
  with pytest.raises(TypeError, match="tx must be an optax optimizer"):
    lottery.freeze_masked(0.1)


def test_random_masks_hold_their_counts():
  a, b = jnp.arange(40).reshape(4, 10), jnp.arange(60).reshape(6, 10)
  masks = {"a": a < 30, "b": b < 5}
  found = {
    scope: lottery.random_masks(masks, jax.random.key(1), scope=scope)
    for scope in ("layer", "even", "global")
  }
  counts = {s: [int(m[n].sum()) for n in "ab"] for s, m in found.items()}
  assert counts["layer"] == [30, 5]
  assert counts["even"] == [14, 21]
  assert sum(counts["global"]) == 35
  assert counts["global"] != counts["layer"]
  assert bool((found["layer"]["a"] != masks["a"]).any())
  with pytest.raises(ValueError, match="scope must be"):
    lottery.random_masks(masks, jax.random.key(1), scope="net")


def test_controls_of_a_stack_are_drawn_within_its_layers():
  masks = {"w": STACK["w"] < 17, "x": STACK["x"] > 0}  # 12, 4 and 2 live weights
  key = jax.random.key(1)
  draw = lambda scope: lottery.random_masks(masks, key, scope=scope, stacked="w")
  counts = {s: draw(s)["w"].sum((1, 2)).tolist() for s in ("layer", "even")}
  assert counts == {"layer": [12, 4], "even": [8, 8]}  # 12 * 18 / 26 is 8.3
  assert int(draw("even")["x"].sum()) == 2  # 1.4: the largest remainder
  np.testing.assert_array_equal(
    draw("global")["w"], lottery.random_masks(masks, key, scope="global")["w"]
  )

  def start(action, axis=0, **kwargs):
    turned = [
      {**tree, "w": jnp.moveaxis(tree["w"], 0, axis)} for tree in (STACK, masks)
    ]
    new = lottery.mask_one(action, *turned, key, stacked={"w": axis}, **kwargs)["w"]
    return np.moveaxis(new, axis, 0).reshape(2, 12)

  for axis in (0, 2):
    new = start("reshuffle", axis)
    assert sorted(new[0]) == list(range(1, 13))
    assert sorted(new[1]) == [0] * 8 + [13, 14, 15, 16]
    assert new[0].tolist() != sorted(new[0])
    # The standard deviations of 1 to 12 and of 13 to 16.
    expected = [np.std(np.arange(12))] * 12 + [np.std(np.arange(4))] * 4 + [0] * 8
    found = start("constant", axis, keep_signs=True).ravel()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
  # Nested scans have two axes of layers, here of four weights each.
  twice = lottery.mask_one("reshuffle", STACK, masks, key, stacked={"w": (0, 1)})["w"]
  assert (jnp.sort(twice[0]) == STACK["w"][0]).all()


def test_a_criterion_compares_the_magnitudes_of_a_layer():
  name, final = "large_init_large_final", {"w": STACK["w"] ** 2, "x": STACK["x"]}
  live = {"w": STACK["w"] != 5, "x": STACK["x"] > 0}
  scores = lottery.criterion(name, STACK, final, live, stacked="w")["w"]
  for layer in (0, 1):
    i, f, m = STACK["w"][layer], final["w"][layer], live["w"][layer]
    alone = lottery.criterion(name, i, f, m)
    np.testing.assert_allclose(scores[layer], alone, rtol=1e-6)
  assert (scores != lottery.criterion(name, STACK, final, live)["w"]).any()


def test_prune_retrain_takes_the_same_pieces():
  """A driver's rule made of `prune`'s own selection agrees with `prune`."""
  params = {"a": jnp.array([[5.0, 1.0, 4.0]]), "b": jnp.array([[-3.0, 2.0, 6.0]])}
  masks = lottery.dense_masks(params)
  rule = second_order.score_rule(lambda p, m: jax.tree.map(jnp.abs, p))
  trajectory = second_order.prune_retrain(
    rule, lambda p, m: p, lambda p: jnp.sum(p["a"]), params, masks, jnp.array([3])
  )
  kept = lottery.prune(params, masks, 0.5, scope="global")
  for name in params:
    np.testing.assert_array_equal(trajectory.masks[name][0], kept[name])


def test_constants_of_large_float16_layers_do_not_overflow():
  w = {"k": jnp.full((300, 300), 2.0, jnp.float16).at[:150].set(-2.0)}
  masks = {"k": jnp.ones((300, 300), bool)}
  new = lottery.mask_one("constant", w, masks, jax.random.key(0))["k"]
  assert new.dtype == jnp.float16
  assert set(jnp.abs(new).ravel().tolist()) == {2.0}
