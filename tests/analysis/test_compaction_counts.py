"""Compaction: how many parameters are left, and that they never become more."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsejax import models
from sparsejax.analysis.compaction import compact


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def draw(rng, *shape):
  return jnp.asarray(rng.normal(size=shape).astype(np.float32))


def drawn(model, *inputs, seed=0):
  """Random variables of a model, biases too."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
  return jax.tree.map(lambda leaf: 0.2 * draw(rng, *leaf.shape), shapes)


def check(apply, params, inputs, **kwargs):
  """The same outputs to 4e-6, and no more parameters than before."""
  small = compact(apply, params, None, inputs, **kwargs)
  want, got = jax.jit(apply)(params, inputs), jax.jit(small.apply)(small.params, inputs)
  scale = max(1.0, float(jnp.abs(want).max()))
  np.testing.assert_allclose(got, want, rtol=0, atol=4e-6 * scale)
  assert count(small.params) <= count(params)
  return small


class CNN(nn.Module):
  """Of 7,738 parameters on three colors; by flax's convolutions or `conv2d`."""

  lowering: Any = "flax"

  @nn.compact
  def __call__(self, x):
    for i, features in enumerate((16, 16, 32)):
      if self.lowering == "flax":
        x = nn.relu(nn.Conv(features, (3, 3), name=f"conv{i}")(x))
        continue
      shape = (3, 3, x.shape[-1], features)
      kernel = self.param(f"kernel{i}", nn.initializers.lecun_normal(), shape)
      bias = self.param(f"bias{i}", nn.initializers.zeros, (features,))
      x = nn.relu(models.conv2d(x, kernel, bias, lowering=self.lowering))
    return nn.Dense(10)(x.mean((1, 2)))


@pytest.mark.parametrize("lowering", ["flax", "slices"])
@pytest.mark.parametrize("maps", [True, False])
def test_one_channel_of_constants_carries_half_of_the_channels(lowering, maps):
  """3 x 9 x 8 + 8, twice (8 + 1) x 9 of 8 and 16 and their biases, 16 x 10 + 10."""
  model, rng = CNN(lowering), np.random.default_rng(0)
  x = draw(rng, 2, 32, 32, 3)
  cut = lambda leaf: leaf.at[..., ::2].set(0.0) if leaf.ndim == 4 else leaf
  params = jax.tree.map(cut, drawn(model, x))
  assert count(params) == 7738
  small = check(model.apply, params, x, maps=maps)
  assert count(small.params) == 224 + 656 + 1312 + 170 == 2362


def test_patterns_other_than_a_border_are_shared_too():
  """Means over windows that are cut off at the border weigh constants alike."""

  def net(p, x):
    h = jax.nn.sigmoid(models.conv2d(x, p["a"], p["b"], lowering="lax"))
    window = dict(window_dimensions=(1, 2, 2, 1), window_strides=(1,) * 4)
    h = jax.lax.reduce_window(h, 0.0, jax.lax.add, padding="SAME", **window)
    return models.conv2d(h, p["c"], padding="VALID", lowering="lax").mean((1, 2))

  rng = np.random.default_rng(0)
  a = draw(rng, 3, 3, 2, 12).at[..., 4:].set(0.0)
  params = {"a": a, "b": draw(rng, 12), "c": draw(rng, 3, 3, 12, 40)}
  small = check(net, params, draw(rng, 2, 8, 8, 2))
  assert small.params["c"].shape == (3, 3, 5, 40)
  # The pattern of 8 x 8 numbers is stored beside it.
  assert count(small.params) == 9 * 2 * 4 + 4 + 9 * 5 * 40 + 64


def test_what_would_grow_is_returned_as_it_is():
  """A product of two small parameters is not folded into a large one."""
  net = lambda p, x: x @ (p["u"] @ p["v"])
  rng = np.random.default_rng(0)
  params = {"u": draw(rng, 8, 1), "v": draw(rng, 1, 8)}
  small = check(net, params, draw(rng, 2, 8))
  assert {name: a.shape for name, a in small.params.items()} == {
    "u": (8, 1),
    "v": (1, 8),
  }
  assert small.select(jnp.ones((2, 8))).shape == (2, 8)
  # Nor is a kernel that no parameter makes counted as one.
  blur = np.full((3, 3), 1 / 9, np.float32)
  fixed = check(lambda p, x: (x @ blur) @ p, draw(rng, 3, 2), draw(rng, 2, 3))
  assert count(fixed.params) == 6


class Language(nn.Module):
  """8,212 parameters: an embedding of 1,000 x 8 for lookup and output, an MLP of 12."""

  @nn.compact
  def __call__(self, tokens):
    embedding = nn.Embed(1000, 8, name="embed")
    x = embedding(tokens)
    h = nn.Dense(8, name="down")(nn.gelu(nn.Dense(12, name="up")(x)))
    return embedding.attend(x + h)


def test_a_tied_embedding_is_stored_once():
  model, tokens = Language(), jnp.array([[1, 2, 3], [999, 0, 7]], jnp.int32)
  params = drawn(model, tokens)
  assert count(params) == 8212
  up = params["params"]["up"]
  up["kernel"] = up["kernel"].at[:, 4].set(0.0).at[:, 9].set(0.0)
  small = check(model.apply, params, tokens)
  assert count(small.params) == 8212 - 2 * (8 + 1 + 8) == 8178
  assert small.shapes["params/embed/embedding"] == ((1000, 8), (1000, 8))


def test_shared_parameters_that_are_cut_differently():
  """One use needs rows 0 to 3, the other rows 2 and 3: the larger holds both."""

  def net(p, x):
    h = jnp.tanh(x @ p["w"])
    return jnp.tanh(h @ p["a"]) @ p["w"]

  rng = np.random.default_rng(0)
  a = draw(rng, 5, 6).at[:, :2].set(0.0).at[:, 4:].set(0.0)
  params = {"w": draw(rng, 6, 5).at[4:].set(0.0), "a": a}
  small = check(net, params, draw(rng, 2, 6))
  assert {k: v.shape for k, v in small.params.items()} == {"w": (4, 5), "a": (5, 2)}
  # Rows 0 to 2 and 2 to 4 of six: five rows hold both.
  params = {"w": draw(rng, 6, 5), "a": draw(rng, 5, 6).at[:, :2].set(0.0)}
  params["a"] = params["a"].at[:, 5].set(0.0)
  first = lambda p, x: jnp.tanh(x[:, :3] @ p["w"][:3]) @ p["a"]
  both = lambda p, x: jnp.tanh(first(p, x)) @ p["w"]
  small = check(both, params, draw(rng, 2, 6))
  assert small.params["w"].shape == (5, 5)


def test_a_tied_autoencoder():
  """relu(x W) W^T with a dead unit: W is stored once, without its column."""
  net = lambda w, x: jax.nn.relu(x @ w) @ w.T
  rng = np.random.default_rng(0)
  small = check(net, draw(rng, 6, 4).at[:, 2].set(0.0), draw(rng, 2, 6))
  assert count(small.params) == 6 * 3


def attention(kind, p, x):
  """Self-attention of four query heads of four, over two heads of keys and values."""
  examples, length, _ = x.shape
  q, k, v = ((x @ p[name]).reshape(examples, length, -1, 4) for name in ("q", "k", "v"))
  if kind == "library":
    h = jax.nn.dot_product_attention(q, k, v, is_causal=True)
  elif kind == "repeated":
    k, v = (jnp.repeat(a, q.shape[2] // a.shape[2], 2) for a in (k, v))
    scores = jnp.einsum("nqhd,nkhd->nhqk", q, k)
    causal = jnp.tril(jnp.ones((length, length), bool))
    weights = jax.nn.softmax(jnp.where(causal[None, None], scores, -1e9))
    h = jnp.einsum("nhqk,nkhd->nqhd", weights, v)
  else:
    q = q.reshape(*q.shape[:2], k.shape[2], -1, 4)
    weights = jax.nn.softmax(jnp.einsum("nqcgd,nkcd->ncgqk", q, k))
    h = jnp.einsum("ncgqk,nkcd->nqcgd", weights, v)
  return x + h.reshape(examples, length, -1) @ p["o"]


@pytest.mark.parametrize("kind", ["library", "repeated", "grouped"])
def test_dead_heads_of_grouped_queries(kind):
  rng = np.random.default_rng(0)
  x = draw(rng, 2, 5, 8)
  params = {"q": draw(rng, 8, 16), "k": draw(rng, 8, 8), "v": draw(rng, 8, 8)}
  params["o"] = draw(rng, 16, 8).at[8:].set(0.0)
  shapes = lambda p: {
    k: now
    for k, (_, now) in check(lambda p, x: attention(kind, p, x), p, x).shapes.items()
  }
  # Both query heads of a key head are dead: it goes with them.
  assert shapes(params) == {"q": (8, 8), "k": (8, 4), "v": (8, 4), "o": (8, 8)}
  # A value head that is zero takes its queries along.
  params = {**params, "o": draw(rng, 16, 8), "v": params["v"].at[:, :4].set(0.0)}
  assert shapes(params) == {"q": (8, 8), "k": (8, 4), "v": (8, 4), "o": (8, 8)}
  # One of two query heads: its group stays.
  params = {**params, "v": draw(rng, 8, 8), "o": params["o"].at[:4].set(0.0)}
  assert shapes(params)["q"] == (8, 16)


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_a_dead_head_goes(library):
  """Three of four heads, of 8 inputs and size 4; biases of the values are zero."""
  rng = np.random.default_rng(0)
  x = draw(rng, 2, 5, 8)
  if library == "linen":
    model = nn.MultiHeadDotProductAttention(4, qkv_features=16)
    params = drawn(model, x)["params"]

    def apply(p, x) -> Any:
      return model.apply({"params": p}, x)

  else:
    module = nnx.MultiHeadAttention(4, 8, 16, decode=False, rngs=nnx.Rngs(0))
    graph, state, rest = nnx.split(module, nnx.Param, ...)
    params = jax.tree.map(lambda p: 0.2 * draw(rng, *p.shape), nnx.to_pure_dict(state))

    def apply(p, x) -> Any:
      full = jax.tree.map(lambda leaf: leaf, state)
      nnx.replace_by_pure_dict(full, p)
      return nnx.merge(graph, full, rest)(x)

  for part, where in {"out": np.s_[1], "value": np.s_[:, 1]}.items():
    dead = {name: dict(layer) for name, layer in params.items()}
    dead[part]["kernel"] = params[part]["kernel"].at[where].set(0.0)
    if part == "value":
      dead[part]["bias"] = params[part]["bias"].at[1].set(0.0)
    shapes = check(apply, dead, x).shapes
    now = {name.split("/")[0]: after for name, (_, after) in shapes.items()}
    inside = dict.fromkeys(["query", "key", "value"], (8, 3, 4))
    assert now == {**inside, "out": (3, 4, 8)}


def test_a_dimension_of_queries_and_keys_that_is_zero_goes():
  model = nn.MultiHeadDotProductAttention(4, qkv_features=16)
  x = draw(np.random.default_rng(0), 2, 5, 8)
  params = drawn(model, x)
  query = params["params"]["query"]
  query["kernel"] = query["kernel"].at[:, :, 2].set(0.0)
  query["bias"] = query["bias"].at[:, 2].set(0.0)
  small = check(model.apply, params, x)
  assert small.shapes["params/query/kernel"][1] == (8, 4, 3)
  assert small.shapes["params/key/kernel"][1] == (8, 4, 3)
  assert small.shapes["params/value/kernel"][1] == (8, 4, 4)


def test_other_products_of_two_activations():
  """Gated units, one head of keys for all queries, a sum over constants of both."""
  rng = np.random.default_rng(0)
  x = draw(rng, 2, 5, 8)
  gated = lambda p, x: (jax.nn.silu(x @ p["g"]) * (x @ p["u"])) @ p["d"]
  params = {"g": draw(rng, 8, 6).at[:, 1].set(0.0), "u": draw(rng, 8, 6)}
  params["u"] = params["u"].at[:, 2].set(0.0)
  params["d"] = draw(rng, 6, 8).at[3].set(0.0)
  assert check(gated, params, x).shapes["g"][1] == (8, 3)

  def one_key_head(p, x):
    q = jnp.einsum("nqi,ihd->nqhd", x, p["q"])
    weights = jax.nn.softmax(jnp.einsum("nqhd,nkd->nhqk", q, x @ p["k"]))
    h = jnp.einsum("nhqk,nkd->nqhd", weights, x @ p["v"])
    return jnp.einsum("nqhd,hdo->nqo", h, p["o"])

  params = {"q": draw(rng, 8, 3, 4), "k": draw(rng, 8, 4), "v": draw(rng, 8, 4)}
  params["o"] = draw(rng, 3, 4, 2).at[0].set(0.0)
  small = check(one_key_head, params, x)
  assert small.shapes["q"][1] == (8, 2, 4)
  assert small.shapes["k"][1] == (8, 4)

  def scores(p, x):
    left, right = x @ p["a"] + p["b"][None, None], x @ p["c"] + p["d"][None, None]
    return jnp.einsum("nqd,nkd->nqk", left, right)

  params = {"a": draw(rng, 8, 4), "b": draw(rng, 4), "c": draw(rng, 8, 4)}
  params["d"] = draw(rng, 4)
  for name in "ac":
    params[name] = params[name].at[:, 1].set(0.0)
  small = check(scores, params, x)
  assert small.shapes["a"][1] == (8, 3)
  assert small.params["constant"].size == 1


def network(data, rng):
  """A random network of convolutions, pools and skips, and of channels masked."""
  pick = lambda *options: data.draw(st.sampled_from(options))
  side, channels = pick(4, 7), pick(1, 3)
  layers, params, shape = [], [], (side, side, channels)
  for _ in range(pick(1, 2, 3)):
    size, features = pick(1, 3), pick(2, 5)
    kernel = np.asarray(draw(rng, size, size, channels, features))
    dead = rng.random(features) < pick(0.0, 0.5)
    live = (rng.random(kernel.shape) < pick(0.2, 1.0)) & ~dead
    bias = pick(True, True, False)
    params.append((jnp.where(live, kernel, 0.0), draw(rng, features) if bias else None))
    layers.append(
      (
        pick("SAME", "VALID") if side >= size else "SAME",
        pick(1, 2),
        pick("lax", "slices"),
        pick(jax.nn.relu, jax.nn.sigmoid, jnp.tanh),
        pick(None, "max", "sum"),
        pick(True, False),
      )
    )
    side = -(-(side if layers[-1][0] == "SAME" else side - size + 1) // layers[-1][1])
    channels = features
  flat = pick(True, False)
  width = channels * side * side if flat else channels
  live = rng.random((width, 1)) < 0.7
  params.append((jnp.where(live, draw(rng, width, 3), 0.0), draw(rng, 3)))

  def net(params, x):
    for (kernel, bias), layer in zip(params, layers, strict=False):
      padding, stride, lowering, activation, pool, skip = layer
      kwargs = {"strides": (stride,) * 2, "padding": padding, "lowering": lowering}
      y = activation(models.conv2d(x, kernel, bias, **kwargs))
      y = y + x if skip and x.shape == y.shape else y
      window = ((1, 2, 2, 1), (1, 1, 1, 1), "SAME")
      if pool == "max":
        y = nn.max_pool(y, (2, 2), (1, 1), "SAME")
      elif pool == "sum":
        y = jax.lax.reduce_window(y, 0.0, jax.lax.add, *window)
      x = y
    kernel, bias = params[-1]
    x = x.reshape(x.shape[0], -1) if flat else x.mean((1, 2))
    return x @ kernel + bias[None]

  return net, params, draw(rng, 2, *shape)


@settings(max_examples=6, deadline=None)
@given(st.data())
def test_no_network_grows(data):
  rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
  net, params, x = network(data, rng)
  check(net, params, x, maps=data.draw(st.booleans()))
