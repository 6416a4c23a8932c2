"""The models: sizes, initial weights, the function they compute."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import models

MNIST = (2, 28, 28, 1)


def images(shape):
  return jnp.asarray(np.random.default_rng(1).uniform(size=shape).astype(np.float32))


def kernels(params):
  return [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    if path[-1].key == "kernel"
  ]


def init(name, shape=MNIST, **kwargs):
  model = models.create(name, **kwargs)
  return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros(shape))["params"]


def filled(name, shape=MNIST, **kwargs):
  """A model and parameters from NumPy, which need not be compiled."""
  rng = np.random.default_rng(0)
  model = models.create(name, **kwargs)

  def fill(leaf):
    bound = np.prod(leaf.shape[:-1]) ** -0.5
    return jnp.asarray(rng.uniform(-bound, bound, leaf.shape).astype(np.float32))

  return model, jax.tree.map(fill, shapes(name, shape, **kwargs))


def shapes(name, shape=MNIST, **kwargs):
  model = models.create(name, **kwargs)
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))["params"]


CIFAR = (1, 32, 32, 3)
COUNTS = [
  # Name, images, arguments, weights in kernels, all parameters.
  ("lenet300", MNIST, {}, 266_200, 266_610),
  ("lenet5", MNIST, {}, 430_500, 431_080),
  ("conv2", CIFAR, {}, 4_300_992, 4_301_642),
  ("conv4", CIFAR, {}, 2_425_024, 2_425_930),
  ("conv6", CIFAR, {}, 2_261_184, 2_262_602),
  ("conv8", CIFAR, {}, 5_275_840, 5_278_282),
  ("vgg16_c", CIFAR, {}, 11_307_712, 11_323_466),
  ("vgg16_d", CIFAR, {}, 15_239_872, 15_255_626),
  ("vgg16_like", CIFAR, {}, 14_977_728, 14_991_946),
  ("alexnet_s", CIFAR, {}, 5_066_784, 5_077_066),
  ("alexnet_b", CIFAR, {}, 8_484_896, 8_501_322),
  # The authors of each print these.
  ("wide_resnet", CIFAR, {"depth": 16, "width": 8}, 10_954_160, 10_961_370),
  ("wide_resnet", CIFAR, {"depth": 22, "width": 8}, 17_147_312, 17_158_106),
  ("wide_resnet", CIFAR, {"depth": 28, "width": 2}, 1_463_984, 1_467_610),
  ("wide_resnet", CIFAR, {"depth": 28, "width": 10}, 36_461_232, 36_479_194),
  ("resnet20", CIFAR, {}, 270_896, 272_474),
  ("alexnet", (1, 227, 227, 3), {"num_classes": 1000}, 62_367_776, 62_378_344),
  ("vanilla_cnn", MNIST, {}, 238_240, 239_850),
  ("resnet50", (1, 224, 224, 3), {"num_classes": 1000}, 25_502_912, 25_557_032),
]


@pytest.mark.parametrize(
  ("name", "shape", "kwargs", "weights", "parameters"),
  COUNTS,
  ids=lambda v: v if isinstance(v, str) else None,
)
def test_weight_counts(name, shape, kwargs, weights, parameters):
  params = shapes(name, shape, **kwargs)
  assert sum(k.size for k in kernels(params)) == weights
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


def test_every_model_is_counted():
  # The transformer has tests of its own.
  assert {name for name, *_ in COUNTS} == set(models.MODELS) - {"mlp", "transformer"}


@pytest.mark.parametrize(
  ("name", "kwargs", "match"),
  [
    ("conv4", {"depth": 3}, "depth must be 2, 4, 6 or 8; got 3"),
    ("lenet5", {"features": (20, 50)}, "features must contain 3 widths; got 2"),
    ("wide_resnet", {"depth": 27}, "depth must be 10, 16, .* got 27 and 2"),
    ("wide_resnet", {"width": 0}, "width at least 1; got 28 and 0"),
    ("vgg16_d", {"version": "e"}, "version must be 'c', 'd' or 'like'; got 'e'"),
    ("alexnet_s", {"size": "m"}, "size must be 's' or 'b'; got 'm'"),
  ],
)
def test_bad_arguments(name, kwargs, match):
  with pytest.raises((TypeError, ValueError), match=match):
    shapes(name, CIFAR, **kwargs)


def test_lenet5_layers():
  got = {name: layer["kernel"].shape for name, layer in shapes("lenet5").items()}
  assert got == {
    "conv1": (5, 5, 1, 20),
    "conv2": (5, 5, 20, 50),
    "dense1": (800, 500),
    "dense2": (500, 10),
  }


@pytest.mark.parametrize("name", sorted(set(models.MODELS) - {"transformer"}))
def test_any_model_takes_images_and_num_classes(name):
  model = models.create(name, num_classes=7)
  side = 67 if name == "alexnet" else 32  # what its strides leave something of
  logits, variables = jax.eval_shape(
    model.init_with_output, jax.random.key(0), jnp.zeros((5, side, side, 3))
  )
  assert (logits.shape, logits.dtype) == ((5, 7), jnp.float32)
  assert {"params"} <= set(variables) <= {"params", "batch_stats"}


@pytest.mark.parametrize("name", ["lenet300", "lenet5", "mlp"])
def test_logits_depend_on_the_image(name):
  model, params = filled(name, (2, 32, 32, 3), num_classes=7)
  x = images((5, 32, 32, 3))
  logits = jax.jit(model.apply)({"params": params}, x)
  assert logits.shape == (5, 7)
  assert logits.dtype == jnp.float32
  assert len(np.unique(np.round(logits, 6))) == logits.size


def test_lenet5_is_what_caffe_and_pytorch_compute():
  model, p = filled("lenet5")
  x = images(MNIST)

  def reference(p, x):
    for name in ("conv1", "conv2"):
      features = p[name]["bias"].size
      layer = nn.Conv(features, (5, 5), padding="VALID")
      x = nn.relu(layer.apply({"params": p[name]}, x))
      x = nn.max_pool(x, (2, 2), (2, 2))
    x = x.reshape(x.shape[0], -1)
    x = nn.relu(x @ p["dense1"]["kernel"] + p["dense1"]["bias"][None])
    return x @ p["dense2"]["kernel"] + p["dense2"]["bias"][None]

  def loss(f):
    return jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(f(p)))))

  ours = loss(lambda p: model.apply({"params": p}, x))(p)
  want = loss(lambda p: reference(p, x))(p)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())


def test_mlp_is_dense_layers_with_the_activation_between():
  model, p = filled("mlp", (2, 3, 3, 1), features=(5, 4), activation=jnp.tanh)
  x = images((6, 3, 3, 1))
  h = x.reshape(6, 9)
  for name in ("dense1", "dense2"):
    h = jnp.tanh(h @ p[name]["kernel"] + p[name]["bias"][None])
  want = h @ p["dense3"]["kernel"] + p["dense3"]["bias"][None]
  np.testing.assert_allclose(model.apply({"params": p}, x), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["lenet300", "lenet5"])
def test_lenets_start_as_pytorch_does(name):
  _, params = init(name)
  for layer in params.values():
    fan_in = np.prod(layer["kernel"].shape[:-1])
    for leaf in (layer["kernel"], layer["bias"]):
      scaled = np.asarray(leaf).ravel() * np.sqrt(fan_in)
      assert np.abs(scaled).max() <= 1
      tolerance = 4 / np.sqrt(leaf.size)
      assert abs(scaled.mean()) < tolerance / np.sqrt(3)
      assert abs(3 * (scaled**2).mean() - 1) < tolerance


def test_initialization_is_an_option():
  _, params = init(
    "mlp", (1, 30, 30, 1), features=(500,), initialization=models.lecun_normal
  )
  assert not params["dense1"]["bias"].any()
  spread = params["dense1"]["kernel"].std() * np.sqrt(900)
  assert abs(spread - 1) < 0.02


def test_seeds_train_side_by_side():
  """Parameters stacked over seeds, as populations are trained."""
  model, params = filled("lenet5")
  x = images(MNIST)
  members = [params, jax.tree.map(lambda a: -a, params)]
  stacked = jax.tree.map(lambda *a: jnp.stack(a), *members)

  @jax.jit
  def grads(p):
    return jax.grad(lambda p: jnp.sum(model.apply({"params": p}, x) ** 2))(p)

  together = jax.jit(jax.vmap(grads))(stacked)
  for i, member in enumerate(members):
    alone = grads(member)
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
      np.testing.assert_allclose(a[i], b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_unknown_name_lists_the_known():
  with pytest.raises(ValueError, match=r"lenet300, lenet5, mlp, .*; got 'lenet'"):
    models.create("lenet")


@pytest.mark.parametrize(
  ("name", "shape"), [("lenet300", MNIST), ("lenet5", MNIST), ("conv4", CIFAR)]
)
def test_without_biases_and_with_plain_norm_only_kernels_are_left(name, shape):
  options = {"use_bias": False, "normalize": True}
  model = models.create(name, initialization="signed_kaiming_constant", **options)
  variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
  params = variables["params"]
  assert len(jax.tree.leaves(params)) == len(kernels(params))
  assert len(variables["batch_stats"]) == len(kernels(params)) - 1
  assert sum(k.size for k in kernels(params)) == sum(
    k.size for k in kernels(shapes(name, shape))
  )


def test_plain_norm_normalizes_a_batch_before_the_activation():
  model, p = filled("mlp", (2, 3, 3, 1), features=(5,), use_bias=False, normalize=True)
  x = images((6, 3, 3, 1))
  stats = {"norm1": {"mean": jnp.zeros(5), "var": jnp.ones(5)}}
  variables = {"params": p, "batch_stats": stats}
  h = x.reshape(6, 9) @ p["dense1"]["kernel"]
  plain = jax.nn.relu(h / jnp.sqrt(1 + 1e-5)) @ p["dense2"]["kernel"]
  np.testing.assert_allclose(model.apply(variables, x), plain, rtol=1e-5, atol=1e-6)
  h = (h - h.mean(0)[None]) / jnp.sqrt(h.var(0) + 1e-5)[None]
  want = jax.nn.relu(h) @ p["dense2"]["kernel"]
  got, _ = model.apply(variables, x, train=True, mutable=["batch_stats"])
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
