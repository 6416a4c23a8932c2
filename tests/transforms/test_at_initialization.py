"""Pruning at initialization against tables worked by hand, and its controls."""

import itertools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import sparsejax as sj


def bits(masks):
  return {
    k: np.asarray(m).astype(int).ravel().tolist()
    for k, m in masks.items()
    if m is not None
  }


def test_masks_from_scores():
  scores = {
    "a": jnp.array([[1.0, 5.0, 4.0, 4.0]]),
    "b": jnp.array([[4.0, 0.5], [0.1, 0.2]]),
    "bias": jnp.array([9.0, 9.0]),
  }
  # 4 of 8: 5 and all three 4s; of 3 the tie at the threshold goes to the first layer.
  assert bits(sj.masks_from_scores(scores, 0.5)) == {
    "a": [0, 1, 1, 1],
    "b": [1, 0, 0, 0],
  }
  assert bits(sj.masks_from_scores(scores, 0.375)) == {
    "a": [0, 1, 1, 1],
    "b": [0, 0, 0, 0],
  }
  layerwise = sj.masks_from_scores(scores, 0.5, distribution=sj.uniform)
  assert bits(layerwise) == {"a": [0, 1, 1, 0], "b": [1, 1, 0, 0]}
  assert layerwise["bias"] is None
  chosen = sj.masks_from_scores(scores, 0.5, where="^(b|bias)$")
  assert bits(chosen) == {"b": [1, 0, 0, 0], "bias": [1, 1]}


def test_masks_from_scores_keep_a_structure():
  scores = {"a": jnp.array([[1.0, 5.0, 4.0, 4.0], [1.0, 2.0, 3.0, 4.0]]).T}
  pairs = {"distribution": sj.uniform, "structure": sj.n_m(1, 2)}
  masks = sj.masks_from_scores(scores, None, **pairs)
  assert masks["a"].T.astype(int).tolist() == [[0, 1, 1, 0], [0, 1, 0, 1]]
  with pytest.raises(ValueError, match="distribution must be given with the structure"):
    sj.masks_from_scores(scores, 0.5, structure=sj.n_m(1, 2))


def test_masks_from_scores_give_each_layer_of_a_stack_its_budget():
  # Layer 0 scores 101 to 112, layer 1 scores 1 to 12: 6 each, the second half.
  scores = {"w": jnp.arange(1.0, 13.0).reshape(1, 3, 4) + jnp.array([[[100.0]], [[0]]])}
  uniform = {"distribution": sj.uniform}
  half = [[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]
  masks = sj.masks_from_scores(scores, 0.5, stacked="w", **uniform)["w"]
  assert masks.astype(int).tolist() == [half, half]
  # As one layer, and where all weights compete, layer 1 is left empty.
  for kwargs in (uniform, {"stacked": "w"}):
    masks = sj.masks_from_scores(scores, 0.5, **kwargs)["w"]
    assert masks.sum((1, 2)).tolist() == [12, 0]
  # Along another axis, beside another layer, in a structure: as in leaves of their own.
  rows = {"w0": scores["w"][0].T, "w1": scores["w"][1].T, "x": jnp.eye(4)}
  along = {"w": jnp.moveaxis(scores["w"], 0, 1).T, "x": rows["x"]}  # (4, 2, 3)
  for kwargs in ({"distribution": sj.erk}, {**uniform, "structure": sj.n_m(1, 2)}):
    alone = sj.masks_from_scores(rows, 0.5, **kwargs)
    masks = sj.masks_from_scores(along, 0.5, stacked={"w": 1}, **kwargs)
    chex.assert_trees_all_equal(masks["w"], jnp.stack([alone["w0"], alone["w1"]], 1))
    chex.assert_trees_all_equal(masks["x"], alone["x"])


@pytest.mark.parametrize("method", ["snip", "grasp", "prospr", "synflow", "ntk_sap"])
def test_layers_of_a_stack_do_not_compete(method):
  # Two experts; what the first one's weights do to the outputs is ten times larger.
  both = lambda a, b, x: 10 * x @ a + x @ b
  forward = [
    lambda p, x: both(p["w"][0], p["w"][1], x),
    lambda p, x: both(p["a"], p["b"], x),
  ]
  w = jax.random.normal(jax.random.key(0), (2, 3, 4))
  x = jax.random.normal(jax.random.key(1), (2, 3))
  kwargs: dict = {"distribution": sj.uniform}
  if method == "ntk_sap":
    # Draws of its own, in each leaf others: only the counts are those of two leaves.
    masks = sj.ntk_sap(
      forward[0], {"w": w}, (1, 3), 0.5, stacked="w", rounds=2, **kwargs
    )
    assert masks["w"].sum((1, 2)).tolist() == [6, 6]
    return

  def find(forward, params, **kwargs):
    if method == "synflow":
      return sj.synflow(forward, params, (1, 3), 0.5, rounds=2, **kwargs)
    loss = lambda p, x: jnp.sum(forward(p, x) ** 2)
    return getattr(sj, method)(loss, params, [x], 0.5, **kwargs)

  masks = find(forward[0], {"w": w}, stacked="w", **kwargs)["w"]
  alone = find(forward[1], {"a": w[0], "b": w[1]}, **kwargs)
  assert masks.sum((1, 2)).tolist() == [6, 6]
  chex.assert_trees_all_equal(masks, jnp.stack([alone["a"], alone["b"]]))


def linear_square(params, batch):
  """(x . w)^2 / 2: g = x (x . w), H = x x^T."""
  output = batch[0] @ jnp.concatenate([params["a"].ravel(), params["b"].ravel()])
  return output**2 / 2 + params["bias"] * output * jnp.float32(0)


PARAMS = {
  "a": jnp.array([[4.0, -1.0]]),
  "b": jnp.array([[2.0], [-3.0]]),
  "bias": jnp.float32(1),
}
BATCHES = [(jnp.array([1.0, 1.0, 1.0, 1.0]),), (jnp.array([0.0, 2.0, 0.0, 1.0]),)]


def test_snip():
  # Outputs 2 and -5; g = (2, 2, 2, 2) / 2 + (0, -10, 0, -5) / 2 = (1, -4, 1, -1.5);
  # |w g| = 4, 4, 2, 4.5.
  one = {"a": [1, 0], "b": [0, 1]}
  assert bits(sj.snip(linear_square, PARAMS, BATCHES, 0.5)) == one
  # By two rounds: at density 0.71 the 2 goes; then the outputs are 0 and -5,
  # g = (0, -5, 0, -2.5), |w g| = 0, 5, 0, 7.5.
  two = {"a": [0, 1], "b": [0, 1]}
  assert bits(sj.snip(linear_square, PARAMS, BATCHES, 0.5, rounds=2)) == two


def test_grasp():
  # g as above; x . g = -3.5 and -9.5; H g = (-3.5 x_1 - 9.5 x_2) / 2
  # = (-1.75, -11.25, -1.75, -6.5); w H g = -7, 11.25, -3.5, 19.5.
  masks = sj.grasp(linear_square, PARAMS, BATCHES, 0.5)
  assert bits(masks) == {"a": [0, 1], "b": [0, 1]}
  masks = sj.grasp(linear_square, PARAMS, BATCHES, 0.75)
  assert bits(masks) == {"a": [0, 1], "b": [1, 1]}


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_prospr(steps):
  rng = np.random.default_rng(0)
  xs, w, rate = rng.normal(size=(4, 4)), np.array([4.0, -1.0, 2.0, -3.0]), 0.1
  # The derivative through the steps: w_t = J_t w, with J_{t+1} = (I - rate x x^T) J_t.
  jacobian = np.eye(4)
  for x in xs[:steps]:
    jacobian = (np.eye(4) - rate * np.outer(x, x)) @ jacobian
  x = xs[steps]
  scores = np.abs(w * (jacobian.T @ x * (x @ jacobian @ w)))
  batches = [(jnp.asarray(x, jnp.float32),) for x in xs]
  for k in (1, 2, 3):
    masks = sj.prospr(
      linear_square, PARAMS, batches, k / 4, steps=steps, learning_rate=rate
    )
    found = np.concatenate([np.ravel(masks["a"]), np.ravel(masks["b"])])
    assert np.flatnonzero(found).tolist() == sorted(np.argsort(-scores)[:k])
  if not steps:
    assert bits(masks) == bits(sj.snip(linear_square, PARAMS, batches[:1], 3 / 4))


def test_ntk_sap():
  # The output depends on the masks of a path by their product alone, so both weights of
  # a path have one score; the paths of the large weights matter most.
  size = jnp.array([[1e-3, 9.0, 1e-3, 8.0, 1e-3, 7.0]])
  fixed = {"a": size, "b": size.T}
  ones = jax.tree.map(jnp.ones_like, fixed)
  masks = sj.ntk_sap(product, ones, (1, 1), 0.5, init=lambda key: fixed, rounds=3)
  assert bits(masks) == {"a": [0, 1, 0, 1, 0, 1], "b": [0, 1, 0, 1, 0, 1]}
  # Units that the output does not depend on go first.
  params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2)).at[1].set(0.0)}
  masks = sj.ntk_sap(
    product, params, (1, 3), 9 / 12, init=lambda key: params, where="a"
  )
  assert bits(masks) == {"a": [1, 0, 1, 1] * 3}
  # Without an initializer weights are drawn with the standard deviation of the given
  # ones: their order does not matter.
  values = jax.random.normal(jax.random.key(0), (5, 6))
  masks = [
    sj.ntk_sap(product, {"a": a, "b": values.T}, (1, 5), 0.3, rounds=2, seed=seed)
    for a, seed in ((values, 0), (values[::-1], 0), (values, 1))
  ]
  assert bits(masks[0]) == bits(masks[1])
  assert bits(masks[0]) != bits(masks[2])
  assert sum(sum(m) for m in bits(masks[0]).values()) == 18


def product(params, x):
  return x @ params["a"] @ params["b"]


def test_synflow():
  params = {
    "a": jnp.array([[1.0, -3.0], [2.0, 0.5]]),
    "b": jnp.array([[4.0], [-1.0]]),
  }
  # R = (1 + 2) 4 + (3 + .5) 1: scores a = 4, 3, 8, .5 and b = 12, 3.5. One shot:
  one = sj.synflow(product, params, (1, 2), 0.5, rounds=1)
  assert bits(one) == {"a": [1, 0, 1, 0], "b": [1, 0]}
  # After the .5 the 3 (tied with b's 3, listed first) is the last of its path.
  two = sj.synflow(product, params, (1, 2), 2 / 6, rounds=4)
  assert bits(two) == {"a": [0, 0, 1, 0], "b": [1, 0]}


def deep(params, x):
  """60 layers of 8 units, stacked in one leaf: |x| grows by about 6 a layer."""
  return jax.lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), x, params["w"])[0]


def deep_params(scale=1.0):
  return {"w": scale * jax.random.normal(jax.random.key(0), (60, 8, 8))}


def test_synflow_of_60_layers_keeps_every_layer_alive():
  params = deep_params(scale=20.0)
  positive = jax.tree.map(jnp.abs, params)
  assert not jnp.isfinite(deep(positive, jnp.ones((1, 8)))).all()  # in float32
  masks = sj.synflow(deep, params, (1, 8), 2 / 64, rounds=50)["w"]
  assert int(masks.sum()) == 120
  assert masks.any((1, 2)).all()
  weights = jnp.where(masks, positive["w"] / 20, 0)
  assert jnp.all(deep({"w": weights}, jnp.ones((1, 8))).sum() > 0)
  # One shot with the same scores cuts the net.
  with pytest.raises(FloatingPointError, match="in round 1 of 1"):
    sj.synflow(deep, deep_params(scale=1e6), (1, 8), 0.5, rounds=1)


def recurrent(cell):
  model = nn.Sequential([nn.RNN(cell(features=6)), nn.Dense(3)])
  params = model.init(jax.random.key(0), jnp.ones((1, 4, 5)))["params"]
  return lambda p, x: model.apply({"params": p}, x), params


@pytest.mark.parametrize(
  "cell", [nn.GRUCell, pytest.param(nn.OptimizedLSTMCell, marks=pytest.mark.slow)]
)
def test_recurrent_networks(cell):
  apply, params = recurrent(cell)
  x = jax.random.normal(jax.random.key(1), (2, 4, 5))
  loss = lambda p, x: jnp.mean(apply(p, x) ** 2)
  kernels = [p for p in jax.tree.leaves(params) if p.ndim == 2]
  total = round(0.3 * sum(p.size for p in kernels))
  for masks in (
    sj.synflow(apply, params, (1, 4, 5), 0.3, rounds=5, distribution=sj.erk),
    sj.snip(loss, params, [x], 0.3),
    sj.grasp(loss, params, [x], 0.3),
  ):
    assert sum(int(m.sum()) for m in jax.tree.leaves(masks)) == total


def test_a_carry_of_float32_gives_the_scores_of_float64():
  """h_t = relu(h U + x W) twice, from h = 0: R = 1^T (W^2 U ...), worked in NumPy."""

  def apply(params, x):
    def step(h, _):
      return jax.nn.relu(h @ params["u"] + x @ params["w"]), None

    return jax.lax.scan(step, jnp.zeros((1, 3), jnp.float32), length=2)[0]

  draw = np.random.default_rng(0).normal
  w, u = draw(size=(2, 3)), draw(size=(3, 3))
  params = {"u": jnp.asarray(u, jnp.float32), "w": jnp.asarray(w, jnp.float32)}
  w, u, ones = np.abs(w), np.abs(u), np.ones(3)
  # R = 1 W U 1 + 1 W 1.
  d_u = np.outer(np.ones(2) @ w, ones)
  d_w = np.outer(np.ones(2), u @ ones + ones)
  scores = np.concatenate([(u * d_u).ravel(), (w * d_w).ravel()])
  kept = scores >= np.sort(scores)[-6]
  masks = sj.synflow(apply, params, (1, 2), 6 / 15, rounds=1)
  assert bits(masks) == {
    "u": kept[:9].astype(int).tolist(),
    "w": kept[9:].astype(int).tolist(),
  }


def test_integer_inputs_and_leaves_that_are_not_floats():
  def apply(params, tokens):
    x = jnp.where(params["mask"][None, :, None], params["table"][tokens], 0)
    return x.sum(1) @ params["kernel"]

  params = {
    "table": jax.random.normal(jax.random.key(0), (7, 4)),
    "mask": jnp.array([True, True, False]),
    "kernel": jnp.array([[1.0, -8.0], [2.0, 7.0], [3.0, -6.0], [4.0, 5.0]]),
    "count": jnp.int32(3),
  }
  tokens = jnp.array([[0, 2, 1]])
  flow = jnp.abs(params["table"][:3:2]).sum(0)[:, None] * jnp.abs(params["kernel"])
  best = flow >= jnp.sort(flow.ravel())[-3]
  masks = sj.synflow(apply, params, tokens, 3 / 8, rounds=1, where="kernel")
  np.testing.assert_array_equal(masks["kernel"], best)
  ones = jax.ShapeDtypeStruct((1, 3), jnp.int32)
  masks = sj.synflow(apply, params, ones, 3 / 8, rounds=1, where="kernel")
  flow = jnp.abs(params["table"][1])[:, None] * jnp.abs(params["kernel"])
  np.testing.assert_array_equal(masks["kernel"], flow >= jnp.sort(flow.ravel())[-3])
  loss = lambda params, batch: jnp.mean(apply(params, batch) ** 2)
  for method in (sj.snip, sj.grasp):
    masks = method(loss, params, [tokens], 3 / 8, where="kernel")
    assert int(masks["kernel"].sum()) == 3


def test_bfloat16_params_and_inputs():
  cast = lambda tree: jax.tree.map(lambda p: p.astype(jnp.bfloat16), tree)
  params = {"a": jnp.array([[1.0, -3.0], [2.0, 0.5]]), "b": jnp.array([[4.0], [-1.0]])}
  one = sj.synflow(product, cast(params), (1, 2), 0.5, rounds=1)
  assert bits(one) == {"a": [1, 0, 1, 0], "b": [1, 0]}  # as in float32, see above
  # A model that computes in a dtype of its own: 1-byte-exact products of bfloat16.
  fixed = lambda p, x: x.astype(jnp.bfloat16) @ cast(p)["a"] @ cast(p)["b"]
  assert bits(sj.synflow(fixed, params, (1, 2), 0.5, rounds=1)) == bits(one)
  # One that takes nothing else, for its constant meets the params in a product.
  strict = lambda p, x: jax.lax.dot(jnp.ones((1, 2), jnp.bfloat16), p["a"]) @ p["b"]
  assert bits(sj.synflow(strict, cast(params), (1, 2), 0.5, rounds=1)) == bits(one)


def test_a_negative_flow_counts_by_its_size():
  # R = 3 a - 2 b - c: scores 3, 2 and 1, not 3, -2 and -1.
  signs = jnp.array([3.0, -2.0, -1.0])
  apply = lambda p, x: jnp.sum(p["w"][:, 0] * signs) * x
  masks = sj.synflow(apply, {"w": jnp.ones((3, 1))}, (1,), 2 / 3, rounds=1)
  assert bits(masks) == {"w": [1, 1, 0]}


def test_layers_that_are_emptied_are_named():
  # A difference of two equal maps: nothing flows through `first` at first order.
  def apply(params, x):
    h = x @ params["first"]
    return (h - h.mean(1, keepdims=True)) @ params["last"] + params["bias"][None]

  params = {"first": jnp.ones((4, 4)), "last": jnp.ones((4, 4)), "bias": jnp.ones(4)}
  params["last"] = params["last"] + jnp.arange(4.0)[:, None]
  params["first"] = params["first"].at[:, 0].set(2.0)
  params["body"] = jnp.ones((4, 4))
  whole = lambda p, x: apply(p, x) + 100 * x @ p["body"]
  with pytest.warns(UserWarning, match="synflow leaves no live weight in first, last"):
    masks = sj.synflow(whole, params, (1, 4), 1 / 3, rounds=2)
  assert masks["body"].all()
  full = sj.synflow(whole, params, (1, 4), 1 / 3, rounds=2, distribution=sj.uniform)
  assert [int(full[k].sum()) for k in ("first", "last", "body")] == [5, 5, 6]
  # A layer of a stack is named, too.
  experts = lambda p, x: 1e3 * x @ p["w"][0] + x @ p["w"][1]
  with pytest.warns(UserWarning, match="no live weight in w/1: "):
    sj.synflow(experts, {"w": jnp.ones((2, 4, 4))}, (1, 4), 0.5, rounds=1, stacked="w")
  # Under jit nothing can be read; the masks are the same.
  traced = jax.jit(lambda p: sj.synflow(whole, p, (1, 4), 1 / 3, rounds=2))(params)
  chex.assert_trees_all_equal(traced, masks)


def test_methods_are_the_same_under_jit_vmap_and_sharding():
  def loss(params, x):
    return jnp.mean(jax.nn.relu(x @ params["a"] + params["bias"][None]) @ params["b"])

  def both(params):
    apply = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
    return (
      sj.snip(loss, params, [x], 0.3, rounds=1),
      sj.synflow(apply, params, (1, 8), 0.3, rounds=3),
    )

  # Small integers: no layout rounds differently.
  draw = lambda key, *s: jax.random.randint(key, s, -8, 9).astype(jnp.float32)
  keys = jax.random.split(jax.random.key(0), 3)
  x = draw(keys[0], 4, 8)
  params = {"a": draw(keys[1], 2, 8, 16), "b": draw(keys[2], 2, 16, 8)}
  params["bias"] = jnp.ones((2, 16))
  members = [jax.tree.map(lambda p, i=i: p[i], params) for i in range(2)]
  compiled = jax.jit(both)
  expected = [jax.device_get(compiled(member)) for member in members]
  mesh = Mesh(np.array(jax.devices()), ("d",))
  spread = lambda p: jax.device_put(p, NamedSharding(mesh, PartitionSpec(None, "d")))
  sharded = members[0] | {k: spread(members[0][k]) for k in "ab"}
  chex.assert_trees_all_equal(compiled(sharded), expected[0])
  batched = jax.jit(jax.vmap(both))(params)
  for i, member in enumerate(expected):
    one = jax.tree.map(lambda m, i=i: m[i], batched)
    chex.assert_trees_all_equal(one, member)
  totals = [int(m["a"].sum() + m["b"].sum()) for m in expected[0]]
  assert totals == [round(0.3 * 256)] * 2


def test_the_masks_train_by_static_sparse():
  masks = sj.snip(linear_square, PARAMS, BATCHES, 0.5)
  tx = sj.static_sparse(optax.sgd(0.1), density=0.5)
  state = sj.with_masks(tx.init(PARAMS), masks)
  grads = jax.grad(linear_square)(PARAMS, BATCHES[0])
  updates, state = jax.jit(tx.update)(grads, state, PARAMS)
  params = optax.apply_updates(PARAMS, updates)
  assert bits(sj.masks(state)) == bits(masks) == {"a": [1, 0], "b": [0, 1]}
  np.testing.assert_allclose(params["a"], [[3.8, 0.0]], rtol=1e-6)
  np.testing.assert_allclose(params["b"], [[0.0], [-3.2]], rtol=1e-6)


def test_shuffled_masks_keep_every_count():
  rng = np.random.default_rng(0)
  masks = {
    "a": jnp.asarray(rng.random((6, 4)) < 0.3),
    "rows": jnp.arange(12).reshape(3, 4) < jnp.array([[1], [6], [12]]),
    "bias": None,
  }
  shuffle = jax.jit(lambda key: sj.shuffle_masks(masks, key, stacked="rows"))
  draws = jax.vmap(shuffle)(jax.random.split(jax.random.key(0), 400))
  assert draws["bias"] is None
  assert (draws["a"].sum((1, 2)) == masks["a"].sum()).all()
  assert (draws["rows"].sum(2) == masks["rows"].sum(1)[None]).all()
  # Every place is live equally often.
  density = float(masks["a"].mean())
  np.testing.assert_allclose(draws["a"].mean(0), density, atol=0.1)


def test_reinitialize_draws_the_kernels_only():
  params = {"kernel": jnp.array([[1.0, -2.0, 0.0]], jnp.bfloat16), "bias": jnp.ones(3)}
  init = jax.nn.initializers.normal(1.0)
  new = sj.reinitialize(params, init, jax.random.key(0))
  assert new["kernel"].dtype == jnp.bfloat16
  assert (new["kernel"] != params["kernel"]).all()
  np.testing.assert_array_equal(new["bias"], params["bias"])
  signed = sj.reinitialize(params, init, jax.random.key(0), keep_signs=True)
  np.testing.assert_array_equal(jnp.sign(signed["kernel"]), [[1, -1, 0]])
  np.testing.assert_array_equal(
    jnp.abs(signed["kernel"])[0, :2], jnp.abs(new["kernel"])[0, :2]
  )


@pytest.mark.parametrize(
  ("shape", "stacked"), [((16, 40, 30), True), ((40, 16, 30), {"kernel": 1})]
)
def test_reinitialize_scales_each_stacked_layer_by_its_own_fan_in(shape, stacked):
  params = {"kernel": jnp.ones(shape)}
  seen = []

  def init(key, layer, dtype):
    seen.append(layer)
    return jax.nn.initializers.lecun_normal()(key, layer, dtype)

  new = sj.reinitialize(params, init, jax.random.key(0), stacked=stacked)["kernel"]
  assert seen == [(40, 30)]  # once, for all layers
  layers = jnp.moveaxis(new, shape.index(16), 0)
  np.testing.assert_allclose(layers.std((1, 2)), 40**-0.5, rtol=0.1)
  assert len(np.unique(np.asarray(layers[:, 0, 0]))) == 16


@pytest.mark.parametrize(
  ("call", "error", "message"),
  [
    (lambda f: f(batches=BATCHES[0]), TypeError, r"batches must be a list .*got tuple"),
    (lambda f: f(batches=[]), ValueError, "batches must contain at least one"),
    (lambda f: f(rounds=0), ValueError, "rounds must be at least 1, got 0"),
    (lambda f: f(rounds=1.5), TypeError, "rounds must be an integer, got 1.5"),
    (lambda f: f(density=1.2), ValueError, r"density must lie in \(0, 1\], got 1.2"),
    (lambda f: f(batches=[(jnp.full(4, jnp.nan),)]), ValueError, "finite.* in round 1"),
  ],
)
def test_bad_input_is_named(call, error, message):
  def f(batches=BATCHES, density=0.5, rounds=1):
    return sj.snip(linear_square, PARAMS, batches, density, rounds=rounds)

  with pytest.raises(error, match=message):
    call(f)


def on_a_path(masks):
  """The live weights of a chain of matrices on live paths from inputs to outputs."""
  ahead, back = [np.ones(len(masks[0]), bool)], [np.ones(masks[-1].shape[1], bool)]
  for m in masks:
    ahead.append(m[ahead[-1]].any(0))
  for m in masks[::-1]:
    back.append(m[:, back[-1]].any(1))
  pairs = zip(masks, ahead[:-1], back[-2::-1], strict=True)
  return [m & a[:, None] & b for m, a, b in pairs]


def test_phew_keeps_paths_from_inputs_to_outputs():
  rng = np.random.default_rng(0)
  names, sizes = ("c", "a", "b"), (30, 20, 10, 5)  # not in the order of their names
  params = {
    name: jnp.asarray(rng.normal(size=shape), jnp.float32)
    for name, shape in zip(names, itertools.pairwise(sizes), strict=True)
  }
  apply = lambda p, x: jax.nn.relu(jax.nn.relu(x @ p["c"]) @ p["a"]) @ p["b"]
  for density in (0.01, 0.05, 0.3, 1.0):
    masks = sj.phew(apply, params, (1, 30), density)
    masks = [np.asarray(masks[name]) for name in names]
    live = sum(int(m.sum()) for m in masks)
    assert live == round(density * 850)
    # Only the walk that was cut short may end halfway.
    whole = sum(int(m.sum()) for m in on_a_path(masks))
    assert whole >= live - 2
  again = sj.phew(apply, params, (1, 30), 0.05, seed=1)
  masks = sj.phew(apply, params, (1, 30), 0.05)
  assert any((again[name] != masks[name]).any() for name in names)


def test_phew_walks_in_proportion_to_magnitude():
  # The first walk runs forward from the only input, to one of two outputs.
  params = {"a": jnp.array([[1.0, -3.0]])}
  found = [
    sj.phew(lambda p, x: x @ p["a"], params, (1, 1), 0.5, seed=seed)["a"][0, 1]
    for seed in range(200)
  ]
  # 150 expected, with a standard deviation of 6.
  assert 125 <= sum(map(bool, found)) <= 175


def test_phew_walks_through_convolutions_and_positions():
  def apply(p, x):
    x = jax.lax.conv_general_dilated(
      x,
      p["conv"]["kernel"],
      (1, 1),
      "VALID",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return x.reshape(1, -1) @ p["dense"]["kernel"]

  # Two positions of three channels: only channel 1 has a weight, at tap (0, 1), and of
  # the dense layer only its second position, 3 + 1, leads to output 0.
  conv = jnp.zeros((1, 2, 1, 3)).at[0, 1, 0, 1].set(2.0)
  dense = jnp.zeros((6, 2)).at[4, 0].set(-1.0)
  params = {"conv": {"kernel": conv}, "dense": {"kernel": dense}}
  masks = sj.phew(apply, params, (1, 1, 3, 1), 2 / 18)
  assert np.argwhere(masks["conv"]["kernel"]).tolist() == [[0, 1, 0, 1]]
  assert np.argwhere(masks["dense"]["kernel"]).tolist() == [[4, 0]]
  with pytest.raises(ValueError, match="walks reach: they found 2 of 9"):
    sj.phew(apply, params, (1, 1, 3, 1), 0.5)
  with pytest.raises(ValueError, match="got none of spare"):
    sj.phew(apply, {**params, "spare": jnp.ones((2, 2))}, (1, 1, 3, 1), 0.5)
  both = lambda p, x: (x @ p["a"], x @ p["b"])
  odd = {"a": jnp.ones((4, 3)), "b": jnp.ones((4, 2))}
  with pytest.raises(ValueError, match="'b' with 4 inputs follows 'a' with 3 outputs"):
    sj.phew(both, odd, (1, 4), 0.5)
