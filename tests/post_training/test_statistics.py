"""Input statistics equal those that hand-made hooks record."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from sparsejax.post_training import input_statistics, layers

KEY = jax.random.key(0)


def normal(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def batches(*shape):
  return [normal(*shape, seed=s) for s in (1, 2)]


def assert_equal(found, inputs, count=None):
  """`inputs`: by layer, what entered it, `(samples, inputs)`, all batches together."""
  assert set(found) == set(inputs)
  for name, x in inputs.items():
    x = np.concatenate([np.asarray(a, np.float64).reshape(-1, a.shape[-1]) for a in x])
    assert found[name].count == len(x), name
    np.testing.assert_allclose(found[name].gram[0], x.T @ x, rtol=2e-5, atol=1e-4)
    norms = np.linalg.norm(x, axis=0)
    np.testing.assert_allclose(found[name].norms[0], norms, rtol=2e-5)


class LinenNet(nn.Module):
  """A convolution, batch normalization, attention and a tied Dense."""

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(4, (3, 3), strides=2, padding="SAME", name="conv")(x)
    x = nn.relu(nn.BatchNorm(use_running_average=True, name="norm")(x))
    x = x.reshape(x.shape[0], -1, 4)
    x = nn.MultiHeadDotProductAttention(2, name="attention")(x)
    dense = nn.Dense(4, name="dense")
    return dense(nn.tanh(dense(x)))


def linen_hooks(model, variables, xs):
  """Inputs of every module, recorded by flax's interceptor."""
  seen = {}

  def intercept(call, args, kwargs, context):
    module = context.module
    if isinstance(module, (nn.Dense, nn.DenseGeneral, nn.Conv)):
      seen.setdefault("/".join(module.path) + "/kernel", []).append(args[0])
    return call(*args, **kwargs)

  for x in xs:
    with nn.intercept_methods(intercept):
      model.apply(variables, x)
  return seen


def patches(x, size, stride, padding):
  """Patches by the library's own extraction, channels last within a tap."""
  out = lax.conv_general_dilated_patches(
    x,
    (size, size),
    (stride, stride),
    padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  channels = x.shape[-1]
  out = out.reshape(*out.shape[:-1], channels, size * size)
  return jnp.swapaxes(out, -1, -2).reshape(-1, size * size * channels)


def test_linen_with_convolution_batch_norm_attention_and_a_shared_layer():
  model, xs = LinenNet(), batches(2, 7, 7, 3)
  variables = model.init(KEY, xs[0])
  rest = {"batch_stats": variables["batch_stats"]}
  found = input_statistics(
    lambda params, x: model.apply({"params": params, **rest}, x),
    variables["params"],
    xs,
  )
  seen = linen_hooks(model, variables, xs)
  seen["conv/kernel"] = [patches(x, 3, 2, "SAME") for x in seen["conv/kernel"]]
  out = seen["attention/out/kernel"]  # (examples, positions, heads, features)
  seen["attention/out/kernel"] = [a.reshape(*a.shape[:-2], -1) for a in out]
  assert next(iter(found)) == "conv/kernel"
  assert list(found)[-1] == "dense/kernel"
  assert_equal(found, seen)


def test_nnx():
  class Net(nnx.Module):
    def __init__(self, rngs):
      self.a = nnx.Linear(5, 6, rngs=rngs)
      self.b = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
      return self.b(nnx.gelu(self.a(x)))

  graph, params = nnx.split(Net(nnx.Rngs(0)))
  xs = batches(3, 5)
  found = input_statistics(lambda p, x: nnx.merge(graph, p)(x), params, xs)
  net = nnx.merge(graph, params)
  seen = {"a/kernel": xs, "b/kernel": [nnx.gelu(net.a(x)) for x in xs]}
  assert_equal(found, seen)


def test_equinox():
  net = eqx.nn.MLP(4, 2, 6, 2, key=KEY)
  params, static = eqx.partition(net, eqx.is_inexact_array)
  xs = batches(3, 4)
  found = input_statistics(
    lambda p, x: jax.vmap(eqx.combine(p, static))(x), params, xs, where="weight"
  )
  seen = {f"layers/{i}/weight": [] for i in range(3)}
  for x in xs:
    for i, layer in enumerate(net.layers):
      seen[f"layers/{i}/weight"].append(x)
      x = jax.nn.relu(jax.vmap(layer)(x))
  assert_equal(found, seen)


def test_equinox_convolution_reads_its_own_layout():
  conv = eqx.nn.Conv2d(3, 4, 3, padding=1, key=KEY)
  params, static = eqx.partition(conv, eqx.is_inexact_array)
  xs = batches(2, 3, 5, 5)
  found = input_statistics(
    lambda p, x: jax.vmap(eqx.combine(p, static))(x), params, xs, where="weight"
  )
  seen = {"weight": [patches(jnp.moveaxis(x, 1, -1), 3, 1, "SAME") for x in xs]}
  assert_equal(found, seen)
  info = layers(
    lambda p, x: jax.vmap(eqx.combine(p, static))(x), params, xs[0], where="weight"
  )
  assert info["weight"].shape == (3, 3, 3, 4)


def test_haiku_lstm_stays_a_loop_and_sums_over_time():
  def forward(xs):
    core = hk.LSTM(3)
    return hk.dynamic_unroll(core, xs, core.initial_state(2), time_major=True)[0]

  net = hk.without_apply_rng(hk.transform(forward))
  xs = batches(5, 2, 4)
  params = net.init(KEY, xs[0])
  found = input_statistics(net.apply, params, xs)

  def hook(x):
    w, b = params["lstm/linear"]["w"], params["lstm/linear"]["b"]
    hidden = cell = jnp.zeros((2, 3))
    rows = []
    for t in range(5):
      rows.append(jnp.concatenate([x[t], hidden], -1))
      i, g, f, o = jnp.split(rows[-1] @ w + b[None], 4, -1)
      cell = jax.nn.sigmoid(f + 1) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
      hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
    return jnp.stack(rows)

  assert_equal(found, {"lstm/linear/w": [hook(x) for x in xs]})


def block(h, p):
  """A transformer block without attention weights' biases, in einsums."""
  q, k, v = jnp.split(jnp.einsum("sd,dhe->hse", h, p["qkv"]), 3, 0)
  scores = jax.nn.softmax(jnp.einsum("hqe,hke->hqk", q, k))
  mixed = jnp.einsum("hqk,hke->qhe", scores, v)
  h = h + jnp.einsum("qhe,hed->qd", mixed, p["out"])
  hidden = jax.nn.relu(h @ p["up"].T)
  return h + hidden @ p["down"].astype(jnp.float32), {
    "qkv": h - jnp.einsum("qhe,hed->qd", mixed, p["out"]),
    "out": mixed.reshape(len(h), -1),
    "up": h,
    "down": hidden,
  }


@pytest.mark.parametrize("form", ["scan", "remat", "reverse", "counter"])
def test_a_scanned_transformer_has_a_layer_per_block(form):
  depth = 3
  params = {
    "qkv": normal(depth, 4, 6, 2),
    "out": normal(depth, 2, 2, 4),
    "up": normal(depth, 8, 4),
    "down": normal(depth, 8, 4).astype(jnp.bfloat16),
  }
  xs = batches(5, 4)

  def apply_fn(params, x):
    body = lambda h, p: (block(h, p)[0], jnp.sum(h))
    if form == "remat":
      body = jax.checkpoint(body)
    if form == "counter":
      take = lambda i: jax.tree.map(lambda a: a[i], params)
      return lax.fori_loop(0, depth, lambda i, h: block(h, take(i))[0], x)
    h, sums = lax.scan(body, x, params, reverse=form == "reverse")
    return h * sums[0]

  found = input_statistics(apply_fn, params, xs)
  seen = {}
  order = range(depth)[:: -1 if form == "reverse" else 1]
  for x in xs:
    # Where its own sum is the block's input, the first line above loses digits.
    for i in order:
      before = x
      x, inside = block(x, jax.tree.map(lambda a, i=i: a[i], params))
      for name, value in {**inside, "qkv": before}.items():
        seen.setdefault(f"{name}[{i}]", []).append(value)
  names = [name for i in order for name in (f"qkv[{i}]", f"out[{i}]")]
  assert [n for n in found if n[0] in "qo"] == names
  assert_equal(found, seen)


def test_slices_of_one_kernel_are_layers_and_repeated_products_one_layer():
  w = normal(4, 6)
  xs = batches(3, 4)

  def apply_fn(params, x):
    left, right = jnp.split(params["w"], 2, 1)
    y = jnp.tanh(x @ left)
    z = lax.stop_gradient(x) @ left.astype(jnp.float32)  # the same weights again
    return y + z, (y @ y.T) @ (2 * x @ right)

  found = input_statistics(apply_fn, {"w": w}, xs)
  assert found["w[0]"].count == 12
  np.testing.assert_allclose(
    found["w[0]"].gram, 2 * sum(x.T @ x for x in xs)[None], rtol=1e-5
  )
  # Every input of the second is doubled.
  np.testing.assert_allclose(
    found["w[1]"].norms[0] ** 2, 4 * sum(x * x for x in xs).sum(0), rtol=1e-5
  )


def test_experts_and_grouped_convolutions_have_inputs_of_their_own():
  x = normal(3, 5, 2)
  found = input_statistics(
    lambda p, x: jnp.einsum("ebi,eio->ebo", x, p["w"]), {"w": normal(3, 2, 4)}, [x]
  )
  np.testing.assert_allclose(
    found["w"].gram, jnp.einsum("ebi,ebj->eij", x, x), rtol=1e-5
  )
  images = normal(2, 6, 4)
  conv = lambda p, x: lax.conv_general_dilated(
    x,
    p["w"],
    (2,),
    [(1, 2)],
    feature_group_count=2,
    rhs_dilation=(2,),
    dimension_numbers=("NWC", "WIO", "NWC"),
  )
  found = input_statistics(conv, {"w": normal(2, 2, 6)}, [images])["w"]
  padded = np.pad(np.asarray(images), ((0, 0), (1, 2), (0, 0)))
  rows = np.stack([padded[:, s : s + 3 : 2] for s in range(0, 7, 2)], 1)
  for group in range(2):
    x = rows[..., 2 * group : 2 * group + 2].reshape(-1, 4)
    np.testing.assert_allclose(found.gram[group], x.T @ x, rtol=1e-5)


def test_bfloat16_is_summed_in_float32_and_counts_are_exact():
  x = jnp.ones((4096, 1), jnp.bfloat16)
  found = input_statistics(lambda p, x: x @ p["w"], {"w": x[:1]}, [x, x], gram=False)
  assert found["w"].gram is None
  assert found["w"].squares.tolist() == [[8192.0]]
  assert found["w"].squares.dtype == jnp.float32
  assert found["w"].count == 8192


def test_what_cannot_be_followed_is_refused_by_name():
  x, w, b = normal(3, 4), normal(4, 4), normal(4, 4, seed=3)

  def refused(apply_fn, name, **kwargs):
    with pytest.raises(ValueError, match=f"'w'.*{name}.*`where`"):
      input_statistics(apply_fn, {"w": w, "b": b}, [x], **kwargs)

  refused(lambda p, x: x @ jnp.tanh(p["w"]), "tanh", where="w")
  refused(lambda p, x: x @ (p["w"] * p["b"]), "mul", where="w")
  refused(lambda p, x: x @ (p["b"] @ p["w"]), "dot_general", where="w")
  refused(lambda p, x: x @ p["w"] + x @ p["w"].T, "share weights", where="w")
  refused(
    lambda p, x: lax.cond(x[0, 0] > 0, lambda: x @ p["w"], lambda: x), "cond", where="w"
  )
  refused(
    lambda p, x: lax.while_loop(lambda h: h[0, 0] < 0, lambda h: h @ p["w"], x),
    "while",
    where="w",
  )
  # Chosen parameters that enter no product.
  table = lambda p, x: jnp.take(p["w"], x.argmax(-1), axis=0) @ p["b"]
  sums = lambda p, x: (x[..., None] * p["w"][None]).sum(1) @ p["b"]
  refused(table, "gather", where="w")
  refused(sums, "mul", where="w|b")
  for apply_fn in (table, sums):  # by default they are left as they are
    assert list(input_statistics(apply_fn, {"w": w, "b": b}, [x])) == ["b"]
  # A mixture of experts that picks kernels by the inputs: no product has all of them.
  experts = lambda p, x: jnp.einsum(
    "ni,nij->nj", x, jnp.take(p["w"].reshape(2, 4, 2), x.argmax(-1) % 2, axis=0)
  )
  refused(lambda p, x: experts(p, x) @ p["b"][:2], "gather")
  # The squares of complex inputs are not those that the real kernel multiplies.
  phases = lambda x: x.astype(jnp.complex64)
  refused(lambda p, x: phases(x) @ phases(p["w"]), "convert", where="w")
  # Left out, the rest is found.
  found = input_statistics(
    lambda p, x: x @ jnp.tanh(p["w"]) @ p["b"], {"w": w, "b": b}, [x], where="b"
  )
  np.testing.assert_allclose(
    found["b"].norms[0], jnp.linalg.norm(x @ jnp.tanh(w), axis=0), rtol=1e-5
  )


def test_bad_batches_are_refused():
  apply_fn = lambda p, x: x @ p["w"]
  params, x = {"w": normal(4, 2)}, normal(3, 4)
  for batches, message in (
    ([], "at least one batch, got none"),
    (iter(()), "at least one batch, got none"),
    ([x, x[:2]], r"shapes and dtypes of the first.*float32\[2, 4\] in batch 1"),
    ([x[:0]], "must contain examples"),
  ):
    with pytest.raises(ValueError, match=message):
      input_statistics(apply_fn, params, batches)
  for batches in (x, 3, {"x": x}):
    with pytest.raises(TypeError, match="batches must be a sequence"):
      input_statistics(apply_fn, params, batches)
  with pytest.raises(ValueError, match="apply_fn must multiply"):
    input_statistics(lambda p, x: x, params, [x])
