"""The vanilla CNN: its function, gradients, memory, warnings and sparse training."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

import sparsejax as sj
from sparsejax import initializers, models
from sparsejax.models import VanillaCNN, conv_stack


def operands(depth=5, n=2, size=5, c=3, dtype=np.float32):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(n, size, size - 1, c))
  kernel = rng.normal(size=(depth, 3, 3, c, c)) / np.sqrt(9 * c)
  bias = 0.1 * rng.normal(size=(depth, c))
  return tuple(jnp.asarray(a.astype(dtype)) for a in (x, kernel, bias))


@functools.partial(jax.jit, static_argnums=1)
def gradients(args, options):
  f = lambda *a: jnp.sum(jnp.sin(conv_stack(*a, **dict(options))))
  return jax.value_and_grad(f, argnums=(0, 1, 2))(*args)


@pytest.mark.parametrize(
  ("padding", "remat"), [("zero", "none"), ("circular", "none"), ("zero", "sqrt")]
)
def test_gradients_are_those_of_lax_conv(padding, remat):
  args = operands()
  want = gradients(args, (("padding", padding), ("lowering", "lax")))
  got = gradients(args, (("padding", padding), ("remat", remat)))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_other_platforms_get_lax_conv():
  args = operands()
  f = jax.jit(jax.grad(lambda *a: conv_stack(*a).sum(), argnums=1))
  for platform, convolves in (("cpu", False), ("cuda", True)):
    text = f.trace(*args).lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.convolution" in text) == convolves


def test_gradients_are_finite_differences():
  with jax.enable_x64(True):
    args = operands(depth=3, n=1, size=3, c=2, dtype=np.float64)
    f = jax.jit(lambda *a: jnp.sum(jnp.sin(conv_stack(*a))))
    check_grads(f, args, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_program_does_not_grow_with_depth():
  def size(depth):
    model = VanillaCNN(depth=depth)
    x = jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    grad = jax.make_jaxpr(jax.grad(lambda p, x: jnp.asarray(model.apply(p, x)).sum()))
    return str(grad(params, x)).count(" = ")

  assert size(20) == size(10_000)


def test_sqrt_remat_keeps_a_tenth():
  def temporary(remat):
    x, kernel, bias = (jnp.zeros((4, 4, 4, 2)), jnp.zeros((900, 3, 3, 2, 2)), (900, 2))
    f = jax.grad(lambda w: conv_stack(x, w, jnp.zeros(bias), remat=remat).sum())
    return jax.jit(f).lower(kernel).compile().memory_analysis().temp_size_in_bytes

  kernels = 2 * 900 * 36 * 4  # what a gradient is made of in any case
  assert temporary("sqrt") < (temporary("none") + kernels) / 4


@functools.cache
def deep():
  model = VanillaCNN(depth=300, channels=4, num_classes=3)
  x = jax.random.normal(jax.random.key(1), (6, 8, 8, 1))
  return model, x, jax.jit(model.init)(jax.random.key(0), x)


def loss(params, batch):
  model, _, _ = deep()
  x, y = batch
  logits = jnp.asarray(model.apply(params, x))
  return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))


loss_and_grads = jax.jit(jax.value_and_grad(loss))


def test_signal_passes_300_layers():
  model, x, params = deep()
  logits = np.asarray(jax.jit(model.apply)(params, x))
  assert 0.03 < logits.std() < 1
  kernel = params["params"]["trunk"]["kernel"]
  assert kernel.shape == (300, 3, 3, 4, 4)
  assert not params["params"]["trunk"]["bias"].any()


def test_it_learns_at_the_calibrated_rate():
  _, x, params = deep()
  batch = x, jnp.array([0, 1, 2] * 2)
  scales = {"trunk/bias": 1 / 300, "readout": 0.0}
  rate = models.calibrate_learning_rate(loss, params, [batch], 0.3, scales)
  tx = optax.chain(optax.sgd(rate), models.scale_by_path(scales))
  tx = sj.isometric(tx, 0.25, update_every=4, where="trunk/ker", stacked="trunk/ker")
  state = jax.jit(tx.init)(params)
  masks = sj.masks(state)["params"]["trunk"]["kernel"]
  # Each layer has a budget of its own, and its orthogonal matrix within it.
  assert (np.asarray(masks).sum((1, 2, 3, 4)) == 36).all()
  assert np.asarray(masks)[:, 1, 1].all()
  params = sj.apply_masks(params, sj.masks(state))

  @jax.jit
  def step(params, state):
    value, grads = jax.value_and_grad(loss)(params, batch)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value

  values, moved = [], masks
  for _ in range(12):
    params, state, value = step(params, state)
    values.append(float(value))
  kernel = np.asarray(params["params"]["trunk"]["kernel"])
  masks = np.asarray(sj.masks(state)["params"]["trunk"]["kernel"])
  assert values[-1] < 0.75 * values[0]
  assert (masks.sum((1, 2, 3, 4)) == 36).all()
  assert masks[:, 1, 1].all()
  assert (masks != np.asarray(moved)).any()
  assert not kernel[~masks].any()
  # The last of the 12 steps ended in a mask update, and so in a retraction.
  gram = kernel[:, 1, 1] @ kernel[:, 1, 1].transpose(0, 2, 1)
  assert np.abs(gram - np.eye(4)).max() < 1e-5


def test_a_random_mask_passes_no_gradient_where_an_orthogonal_one_does():
  _, x, params = deep()
  batch = x, jnp.array([0, 1, 2] * 2)
  kernel = params["params"]["trunk"]["kernel"]
  random = jax.random.bernoulli(jax.random.key(2), 0.25, kernel.shape)
  init = initializers.sparse_orthogonal(0.25, stacked=True)
  sparse = jax.jit(init, static_argnums=1)(jax.random.key(0), kernel.shape)
  norms = []
  for new in (jnp.where(random, kernel, 0.0), sparse):
    trunk = {**params["params"]["trunk"], "kernel": new}
    _, grads = loss_and_grads({"params": {**params["params"], "trunk": trunk}}, batch)
    norms.append(float(jnp.abs(grads["params"]["trunk"]["kernel"][0]).max()))
  assert norms[0] == 0
  assert norms[1] > 1e-3


@pytest.mark.parametrize(
  ("trained", "still"), [("trunk", "readout"), ("readout", "trunk")]
)
def test_what_is_trained(trained, still):
  model = VanillaCNN(depth=3, channels=4, trained=trained)
  x = jnp.ones((2, 4, 4, 1))
  params = jax.jit(model.init)(jax.random.key(0), x)
  f = lambda p: jnp.asarray(model.apply(p, x)).sum()
  grads = jax.jit(jax.grad(f))(params)["params"]
  assert not any(g.any() for g in jax.tree.leaves(grads[still]))
  assert all(g.any() for g in jax.tree.leaves(grads[trained]))


def test_the_stem_loses_nothing():
  x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
  y = models.space_to_depth(x, 2)
  assert y.shape == (2, 2, 3, 12)
  np.testing.assert_array_equal(np.sort(y, None), np.sort(x, None))
  np.testing.assert_array_equal(y[0, 0, 1], x[0, :2, 2:4].reshape(-1))


def init(shape=(1, 4, 4, 1), **kwargs):
  return jax.eval_shape(VanillaCNN(**kwargs).init, jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"dtype": jnp.bfloat16}, "bfloat16 runs about 20 times slower"),
    ({"unroll": 101}, "unroll=101"),
    ({"weight_variance": 1.05, "bias_variance": 2.01e-5, "depth": 10_000}, "8 L q"),
  ],
)
def test_warnings_that_save_a_day(kwargs, message):
  with pytest.warns(UserWarning, match=message):
    init(**kwargs)


def test_defaults_warn_of_nothing():
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    init(depth=10_000)


def test_images_that_are_not_centred():
  rng = np.random.default_rng(0)
  with pytest.warns(UserWarning, match="the mean image is"):
    models.check_centred(rng.uniform(size=(50, 4, 4, 1)))
  assert models.check_centred(rng.normal(size=(50, 4, 4, 1))) < 0.05


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"activation": "cube"}, "tanh, erf, relu"),
    ({"kernel_init": "zeros"}, "delta_orthogonal, .*'zeros'"),
    ({"depth": 0}, "depth must be above 0"),
    ({"trained": "stem"}, "all, trunk, readout; got 'stem'"),
    ({"shape": (1, 5, 5, 1), "stride": 2}, "multiples of stride 2"),
    ({"shape": (1, 4, 4, 3), "stride": 4}, "stride.2 c = 48; got 16"),
    ({"remat": "all"}, "remat must be one of none, sqrt"),
    ({"padding": "SAME"}, "padding must be one of zero, circular"),
    ({"kernel_size": 2}, "must be odd"),
  ],
)
def test_bad_attributes_are_refused(kwargs, message):
  with pytest.raises(ValueError, match=message):
    init(**kwargs)


def test_bad_learning_rates_are_refused():
  params = {"w": jnp.ones(2)}
  flat = lambda p, b: jnp.sum(p["w"]) * 0.0
  with pytest.raises(ValueError, match="passes no signal"):
    models.calibrate_learning_rate(flat, params, [0])
  with pytest.raises(ValueError, match="got none"):
    models.calibrate_learning_rate(flat, params, [])
  with pytest.raises(ValueError, match="got 'bias' for w"):
    models.scale_by_path({"bias": 0.1}).init(params)
