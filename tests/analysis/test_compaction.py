"""Compaction: the same function of fewer units, or a refusal."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsejax import models
from sparsejax.analysis.compaction import compact, live_parameters
from sparsejax.analysis.costs import flops, sizes


def pruned(model, shape, density, channels, seed=0):
  """Random variables of a model; of its kernels some weights and some channels live."""
  rng = np.random.default_rng(seed)
  abstract = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))

  def fill(path, leaf):
    values = rng.normal(size=leaf.shape).astype(np.float32)
    if path[-1].key == "var":
      return jnp.asarray(np.abs(values) + 0.5)
    if path[-1].key != "kernel":
      return jnp.asarray(0.3 * values)
    live = rng.random(leaf.shape) < density
    if path[-2].key != "shortcut" and leaf.shape[-1] != 10:
      live = live & (rng.random(leaf.shape[-1]) < channels)
    fan_in = max(1.0, np.prod(leaf.shape[-4 if leaf.ndim > 2 else 0 : -1]) * density)
    return jnp.asarray(values * live * fan_in**-0.5)

  return jax.tree_util.tree_map_with_path(fill, abstract)


def check(apply, variables, shape, masks=None, sizes=(1, 3), **kwargs):
  """Both compute the same, for every size of the batch."""
  example = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  small = compact(apply, variables, masks, example, **kwargs)
  if masks is not None:
    keep = lambda p, m: p if m is None else jnp.where(m, p, 0.0)
    variables = jax.tree.map(keep, variables, masks, is_leaf=lambda m: m is None)
  rng = np.random.default_rng(1)
  for n in sizes:
    x = jnp.asarray(rng.normal(size=(n, *shape)).astype(np.float32))
    want, got = jax.jit(apply)(variables, x), jax.jit(small.apply)(small.params, x)
    scale = max(1.0, float(jnp.abs(want).max()))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * scale)
  return small


SMALL = {
  "lenet300": (models.LeNet300(), (8, 8, 1)),
  "lenet5": (models.LeNet5(), (16, 16, 1)),
  "lenet5_lax": (models.LeNet5(lowering="lax"), (16, 16, 1)),
  "vanilla_cnn": (models.VanillaCNN(depth=3, channels=8), (4, 4, 1)),
  "resnet": (models.ResNet((1, 1), 6, True, "imagenet"), (8, 8, 3)),
}
# As configured by default, or nearly; a minute each on two busy cores.
WHOLE = {
  "alexnet": ({"num_classes": 10}, (67, 67, 3)),
  "alexnet_s": ({}, (32, 32, 3)),
  "alexnet_b": ({}, (32, 32, 3)),
  "conv2": ({}, (8, 8, 3)),
  "conv4": ({}, (8, 8, 3)),
  "conv6": ({}, (8, 8, 3)),
  "conv8": ({}, (16, 16, 3)),
  "mlp": ({}, (8, 8, 1)),
  "resnet20": ({}, (8, 8, 3)),
  "resnet50": ({"num_classes": 10}, (32, 32, 3)),
  "vgg16_c": ({}, (32, 32, 3)),
  "vgg16_d": ({}, (32, 32, 3)),
  "vgg16_like": ({}, (32, 32, 3)),
  "wide_resnet": ({"depth": 10, "width": 1}, (8, 8, 3)),
}
KINDS = {"unstructured": (0.08, 1.0), "channels": (0.7, 0.4)}


def check_model(model, shape, kind):
  small = check(model.apply, pruned(model, shape, *KINDS[kind]), shape)
  # Layers of a loop draw channels of their own, and their union is kept.
  if kind == "channels" and not isinstance(model, models.VanillaCNN):
    assert any(before != now for before, now in small.shapes.values())


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("kind", KINDS)
def test_models(name, kind):
  model, shape = SMALL[name]
  check_model(model, shape, kind)


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("kind", KINDS)
def test_whole_models(name, kind):
  kwargs, shape = WHOLE[name]
  check_model(models.create(name, **kwargs), shape, kind)


def test_every_model_is_compacted():
  assert {*WHOLE, *SMALL, "transformer"} >= {*models.MODELS}


def test_a_transformer_loses_hidden_units_and_experts_are_refused():
  kwargs = {"num_classes": 20, "length": 4, "depth": 1, "width": 8, "heads": 2}
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 20, (3, 4)), jnp.int32)
  model = models.Transformer(**kwargs)
  variables = {"params": jax.jit(model.init)(jax.random.key(0), tokens)["params"]}
  up = variables["params"]["mlp1"]["up"]
  up["kernel"] = up["kernel"].at[:, 5:].set(0.0)
  small = compact(model.apply, variables, None, tokens)
  assert small.shapes["params/mlp1/up/kernel"] == ((8, 32), (8, 5))
  want, got = model.apply(variables, tokens), small.apply(small.params, tokens)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
  experts = models.Transformer(**kwargs, num_experts=4)
  shapes = {"params": jax.eval_shape(experts.init, jax.random.key(0), tokens)["params"]}
  drawn = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), shapes)
  with pytest.raises(ValueError, match="follow units through 'top_k'"):
    compact(experts.apply, drawn, None, tokens)


def test_a_channel_that_no_layer_of_a_loop_uses():
  model = models.VanillaCNN(depth=3, channels=8)
  variables = pruned(model, (4, 4, 1), 1.0, 1.0)
  kernel = variables["params"]["trunk"]["kernel"].at[..., 5:].set(0.0)
  variables["params"]["trunk"]["kernel"] = kernel
  small = check(model.apply, variables, (4, 4, 1))
  assert small.params["params/trunk/kernel"].shape == (3, 9, 5, 5)
  assert small.params["params/trunk/bias"].shape[0] == 3


def test_a_hand_made_network():
  """Pixel 2 is not read, unit 1 has no input, unit 3 no output: 2 of 4 are left."""

  def mlp(p, x):
    h = jax.nn.relu(x.reshape(x.shape[0], -1) @ p["a"] + p["b"][None])
    return h @ p["c"] + p["d"][None]

  params = {
    "a": jnp.array([[1.0, 0, 0, 1], [2, 0, 3, 0], [0, 0, 0, 5], [1, 0, 1, 0]]),
    "b": jnp.array([0.5, 2.0, -1.0, 7.0]),
    "c": jnp.array([[1.0, 0], [3, 4], [0, 2], [0, 0]]),
    "d": jnp.array([10.0, 20.0]),
  }
  small = check(mlp, params, (2, 2, 1))
  assert small.pixels.tolist() == [0, 1, 3]
  assert {k: v.tolist() for k, v in small.params.items()} == {
    "a": [[1, 0], [2, 3], [1, 1]],
    "b": [[0.5, -1.0]],
    "c": [[1, 0], [0, 2]],
    "d": [[10.0 + 2 * 3, 20.0 + 2 * 4]],
  }
  x = jnp.arange(8.0).reshape(2, 2, 2, 1)
  assert small.select(x).tolist() == [[0, 1, 3], [4, 5, 7]]
  live = live_parameters(mlp, params, {k: v != 0 for k, v in params.items()}, x)
  assert {k: int(v.sum()) for k, v in live.items()} == {"a": 5, "b": 2, "c": 2, "d": 2}
  assert sizes(params, live).live == 11
  example = jnp.ones((1, 3))
  assert flops(small.apply_pixels, small.params, small.masks, example).flops == 2 * 7


def test_constants_behind_a_border():
  """A dead channel of bias 1 behind SAME padding is a channel of ones, or a map."""
  conv = lambda w, x: models.conv2d(x, w["k"], w["b"])
  net = lambda p, x: conv(p["2"], jax.nn.relu(conv(p["1"], x)))
  rng = np.random.default_rng(0)
  draw = lambda *s: jnp.asarray(rng.normal(size=s).astype(np.float32))
  params = {
    "1": {"k": draw(3, 3, 1, 2).at[..., 1].set(0.0), "b": jnp.ones(2)},
    "2": {"k": draw(3, 3, 2, 4), "b": draw(4)},
  }
  for maps in (True, False):
    small = check(net, params, (4, 4, 1), maps=maps)
    # The kernel's second row is the dead channel's, times relu(1).
    assert small.params["1/k"].shape == (3, 3, 1, 1)
    np.testing.assert_array_equal(small.params["2/k"], params["2"]["k"])
    assert small.params["2/b"].shape == (4, 1, 1, 1)
  silent = {**params, "1": {**params["1"], "b": jnp.array([1.0, -1.0])}}
  assert check(net, silent, (4, 4, 1), maps=False).params["1/k"].shape == (3, 3, 1, 1)
  # On 2 x 2 pixels a map of 4 x 4 numbers is smaller than a row of 9 x 4.
  assert check(net, params, (2, 2, 1)).params["2/b"].shape == (4, 2, 2, 1)


class Joined(nn.Module):
  """Concatenation, residual additions, group and depthwise convolutions, pools."""

  @nn.compact
  def __call__(self, x):
    a, b = nn.Conv(6, (3, 3), name="a")(x), nn.Conv(4, (1, 1), name="b")(x)
    h = jnp.concatenate([nn.gelu(a), jnp.tanh(b)], -1)
    h = h + nn.Conv(10, (3, 3), name="c")(h)
    h = jax.lax.reduce_window(nn.silu(h), 0.0, jax.lax.add, *[(1, 2, 2, 1)] * 2, "SAME")
    h = nn.Conv(10, (3, 3), feature_group_count=10, name="depthwise")(h)
    h = nn.Conv(6, (1, 1), name="f")(nn.leaky_relu(h))
    h = nn.Conv(6, (1, 1), feature_group_count=3, name="groups")(h)
    h = nn.max_pool(h, (3, 3), (1, 1), "SAME")
    h = nn.LayerNorm(name="norm")(nn.Dense(8, name="d")(h.reshape(h.shape[0], -1)))
    gate = nn.sigmoid(nn.Dense(1, name="gate")(h))
    return nn.log_softmax(nn.Dense(5, name="e")(h * gate))


def test_what_networks_are_made_of():
  variables = pruned(Joined(), (4, 4, 2), 0.6, 0.6)
  small = check(Joined().apply, variables, (4, 4, 2))
  now = {name.split("/")[1]: shapes[1] for name, shapes in small.shapes.items()}
  # And one channel of constants, for what the border does not see of the removed.
  assert now["c"][2] - 1 == now["c"][3] == now["depthwise"][3] < 9


def test_a_constant_network_and_dead_classes():
  mlp = models.MLP((6,), 3)
  variables = pruned(mlp, (4,), 1.0, 1.0)
  dead = jax.tree.map(lambda p: p * 0 if p.ndim > 1 else p, variables)
  small = check(mlp.apply, dead, (4,))
  assert not small.shapes


def test_a_shortcut_of_dead_units_is_its_border():
  """Units padded to twice as many are all dead; only the border is still added to."""
  rng = np.random.default_rng(0)
  draw = lambda *s: jnp.asarray(rng.normal(size=s).astype(np.float32))
  params = {"a": jnp.zeros((3, 2)), "b": draw(2), "c": draw(3, 4), "d": draw(4, 2)}
  for dead, low, high in ((slice(2), 0, 2), (slice(2, 4), 2, 0)):

    def net(p, x, low=low, high=high):
      shortcut = jax.nn.relu(x @ p["a"] + p["b"][None])
      h = jnp.pad(shortcut, ((0, 0), (low, high))) + x @ p["c"]
      return jax.nn.relu(h) @ p["d"]

    half = {**params, "c": params["c"].at[:, dead].set(0.0)}
    small = check(net, half, (3,))
    assert small.shapes == {"c": ((3, 4), (3, 2)), "d": ((4, 2), (2, 2))}


def test_a_barrier_of_several_values():
  def net(p, x):
    h, same = jax.lax.optimization_barrier((x @ p, 2.0 * x))
    return h @ p + same

  w = jnp.eye(3).at[1].set(0.0)
  assert check(net, w, (3,), sizes=(2,)).shapes


def test_masks_and_other_containers():
  mlp = models.MLP((6,), 3)
  variables = pruned(mlp, (4,), 1.0, 1.0)
  masks = jax.tree.map(lambda p: p > 0.3 if p.ndim > 1 else None, variables)
  check(mlp.apply, variables, (4,), masks)


@pytest.mark.parametrize(
  ("function", "match"),
  [
    (lambda w, x: jnp.sort(x @ w), "follow units through 'sort'"),
    (lambda w, x: jnp.cumsum(x @ w, 1), "follow units through 'cumsum'"),
    (lambda w, x: (x @ w)[:, jnp.array([1, 0])], "follow units through 'gather'"),
    (lambda w, x: (x @ w)[::-1][1:], "'slice' of the batch|do the same for every size"),
    (lambda w, x: x @ w + jnp.arange(1.0 * x.shape[0])[:, None], "treat all examples"),
    (
      lambda w, x: jax.lax.fori_loop(0, 3, lambda i, h: h @ w[i], x),
      "through 'dynamic_slice'|loop that carries",
    ),
  ],
)
def test_what_is_not_understood_is_refused_by_name(function, match):
  w = jnp.ones((3, 4, 4)) if "loop" in match else jnp.ones((4, 4))
  with pytest.raises(ValueError, match=match):
    compact(function, w, None, jnp.ones((1, 4)))


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_random_networks(data):
  """Random dense layers, biases, activations, skips; random masks."""
  rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
  widths = [data.draw(st.integers(1, 6)) for _ in range(data.draw(st.integers(2, 4)))]
  density = data.draw(st.sampled_from([0.1, 0.3, 0.6]))
  functions = [
    data.draw(st.sampled_from([jnp.tanh, jax.nn.relu, jax.nn.sigmoid, jnp.square]))
    for _ in widths
  ]
  skips = [data.draw(st.sampled_from(["none", "add", "concatenate"])) for _ in widths]
  params, sizes_in = [], 5
  for width, skip in zip(widths, skips, strict=True):
    width = sizes_in if skip == "add" else width
    kernel = rng.normal(size=(sizes_in, width)) * (
      rng.random((sizes_in, width)) < density
    )
    params.append((kernel.astype(np.float32), rng.normal(size=width).astype("f4")))
    sizes_in = sizes_in + width if skip == "concatenate" else width

  def net(params, x):
    for (kernel, bias), f, skip in zip(params, functions, skips, strict=True):
      h = f(x @ kernel + bias[None])
      x = {"none": lambda x, h: h, "add": jnp.add}.get(
        skip, lambda x, h: jnp.concatenate([x, h], 1)
      )(x, h)
    return x

  check(net, jax.tree.map(jnp.asarray, params), (5,), sizes=(2,))


def test_a_reshape_of_permuted_axes():
  """As by order="F", and by vmap over the kernels of a convolution."""
  params = {"w": jax.random.normal(jax.random.key(0), (12, 4)).at[3].set(0.0)}
  x = jax.random.normal(jax.random.key(1), (5, 4, 3))
  flat = lambda p, x: jax.vmap(lambda a: a.reshape(-1, order="F"))(x) @ p["w"]
  small = compact(flat, params, None, x)
  np.testing.assert_allclose(small.apply(small.params, x), flat(params, x), atol=1e-5)


@pytest.mark.parametrize(
  "function",
  [
    lambda p, x: (x - x.mean(0, keepdims=True)) @ p["w"],
    lambda p, x: jnp.mean((x @ p["w"]) ** 2, keepdims=True),
    lambda p, x: jax.lax.map(lambda row: row @ p["w"], x),
  ],
)
def test_a_batch_size_inside_the_function_is_refused(function):
  params, x = {"w": jnp.ones((4, 3))}, jnp.ones((5, 4))
  with pytest.raises(ValueError, match="the same for every size of the batch"):
    compact(function, params, None, x)


def test_reduced_precision_stays():
  params = {"w": jax.random.normal(jax.random.key(0), (4, 3))}
  rounded = lambda p, x: x @ jax.lax.reduce_precision(p["w"], 4, 2)
  x = jnp.ones((5, 4))
  small = compact(rounded, params, None, x)
  np.testing.assert_allclose(small.apply(small.params, x), rounded(params, x))


def test_live_parameters_of_differences():
  params = {"w": jnp.ones((4, 3))}
  centered = lambda p, x: x @ (p["w"] - p["w"].mean(0)[None])
  live = live_parameters(centered, params, None, jnp.ones((2, 4)))
  assert int(live["w"].sum()) == 12
