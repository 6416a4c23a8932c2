"""Capacity, warm-up and partial areas."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj
from sparsejax import growth, models


@pytest.fixture(autouse=True)
def adam():
  with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
    yield


def _setup(features):
  model = models.create("mlp", features=features, num_classes=3)
  chain = growth.layers(model, (2, 2, 1))
  params = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 2, 2, 1)))["params"]
  tx = growth.warm_up(sj.static_sparse(optax.adam(0.02), density=1.0), steps=3)
  return model, chain, params, tx


def test_doubling_leaves_function_and_trajectory_unchanged():
  x = jax.random.normal(jax.random.key(1), (32, 2, 2, 1))
  y = jnp.argmax(x.reshape(32, 4)[:, :3], axis=1)

  def stepper(model, tx):
    def loss(params):
      logits = model.apply({"params": params}, x)
      return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params, state):
      value, grads = jax.value_and_grad(loss)(params)
      updates, state = tx.update(grads, state, params)
      return optax.apply_updates(params, updates), state, value

    return step

  def steps(step, params, state, n):
    values = []
    for _ in range(n):
      params, state, value = step(params, state)
      values.append(float(value))
    return params, state, values

  model, chain, params, tx = _setup((6, 4))
  masks = growth.seed(chain, 0.5, 0.6, jax.random.key(2))
  state = sj.with_masks(tx.init(params), masks)
  step = stepper(model, tx)
  params, state, _ = steps(step, sj.apply_masks(params, masks), state, 4)

  wide_model, wide_chain, wide_params, wide_tx = _setup((12, 8))
  wide_state = wide_tx.init(wide_params)
  none = jax.tree.map(jnp.zeros_like, sj.masks(wide_state))
  wide_state = sj.with_masks(wide_state, none)
  carry = lambda tree, wider: growth.carry_over(tree, wider, chain, wide_chain)
  wide_params, wide_state = carry(params, wide_params), carry(state, wide_state)
  wide_masks = sj.masks(wide_state)
  wide_params = sj.apply_masks(wide_params, wide_masks)
  assert growth.size(wide_masks, wide_chain) == growth.size(sj.masks(state), chain)
  np.testing.assert_allclose(
    wide_model.apply({"params": wide_params}, x),
    model.apply({"params": params}, x),
    rtol=1e-5,
    atol=1e-6,
  )
  narrow = steps(step, params, state, 5)
  wide = steps(stepper(wide_model, wide_tx), wide_params, wide_state, 5)
  np.testing.assert_allclose(wide[2], narrow[2], rtol=1e-5)
  np.testing.assert_allclose(
    wide[0]["dense2"]["kernel"][:6, :4], narrow[0]["dense2"]["kernel"], atol=1e-5
  )
  moment = lambda state: optax.tree.get(state, "mu")["dense2"]["kernel"]
  np.testing.assert_allclose(moment(wide[1])[:6, :4], moment(narrow[1]), atol=1e-6)
  assert int(optax.tree.get(wide[1].inner_state.inner_state, "count")) == 9
  with pytest.raises(ValueError, match="at least as wide"):
    growth.carry_over(wide_params, params, wide_chain, chain)


def test_channels_find_their_rows_after_flattening():
  narrow = growth.Layer(("c",), (1, 1, 1, 2), 1, 4), growth.Layer(("d",), (8, 1), 2, 1)
  wide = growth.Layer(("c",), (1, 1, 1, 4), 1, 4), growth.Layer(("d",), (16, 1), 4, 1)
  kernel = {"d": {"kernel": jnp.arange(8.0)[:, None]}}
  fresh = {"d": {"kernel": jnp.full((16, 1), -1.0)}}
  carried = growth.carry_over(kernel, fresh, narrow, wide)["d"]["kernel"]
  expected = [[0, 1, -1, -1], [2, 3, -1, -1], [4, 5, -1, -1], [6, 7, -1, -1]]
  np.testing.assert_array_equal(carried.reshape(4, 4), expected)


def test_woken_weights_warm_up_and_dropped_ones_go_at_once():
  tx = growth.warm_up(sj.static_sparse(optax.adam(1.0), density=1.0), steps=4)
  params = {"kernel": jnp.array([[1.0, 0.0]])}
  first = {"kernel": jnp.array([[True, False]])}
  state = sj.with_masks(tx.init(params), first)
  update = jax.jit(tx.update)
  ones = {"kernel": jnp.ones((1, 2))}
  for _ in range(300):
    updates, state = update(ones, state, {"kernel": jnp.zeros((1, 2))})
  state = sj.densify(state)
  steps = []
  for _ in range(5):
    updates, state = update(ones, state, {"kernel": jnp.zeros((1, 2))})
    steps.append(-float(updates["kernel"][0, 1]))
    assert updates["kernel"][0, 0] == pytest.approx(-1.0, abs=1e-3)
  bare = optax.adam(1.0)
  state_ = bare.init(ones)
  for i in range(305):
    grads = {"kernel": jnp.array([[1.0, float(i >= 300)]])}
    updates_, state_ = bare.update(grads, state_, ones)
    if i == 300:
      assert -float(updates_["kernel"][0, 1]) > 1.6  # what it is there for
  assert steps[0] < 0.5
  assert steps[4] == pytest.approx(-float(updates_["kernel"][0, 1]), rel=1e-4)
  state = sj.with_masks(state, first)
  updates, _ = update(ones, state, {"kernel": jnp.array([[1.0, 5.0]])})
  assert updates["kernel"][0, 1] == -5.0


def test_partial_areas_by_hand():
  x = jnp.arange(9.0).reshape(1, 3, 3, 1) * jnp.array([1.0, -1.0])[None, None, None]
  kernel = jnp.ones((2, 2, 2, 1)).at[..., 1, :].set(2.0)
  terms = growth.contributions(x, kernel)
  np.testing.assert_array_equal(terms[0, :, :, 0, 0], [[8, 12], [20, 24]])
  np.testing.assert_array_equal(terms[0, :, :, 1, 0], [[-16, -24], [-40, -48]])
  areas = growth.prune_areas(
    jnp.ones((2, 2, 2, 1), bool), jnp.mean(jnp.abs(terms), axis=0), 0.5
  )
  np.testing.assert_array_equal(areas[..., 0, 0], [[False, False], [True, True]])
  areas = areas.at[0, 0, 0, 0].set(True)
  y = growth.partial_area_conv(x, kernel, areas)
  np.testing.assert_array_equal(y[0, ..., 0], [[8, 0], [-20, -24]])
  left = growth.prune_areas(areas, jnp.mean(jnp.abs(terms), axis=0), 0.99)
  assert [int(n) for n in left.sum((0, 1)).ravel()] == [1, 1]
  with pytest.raises(ValueError, match="areas must be of shape"):
    growth.partial_area_conv(x, kernel, areas[..., :1, :])


def test_partial_areas_of_a_strided_model():
  """Against the sum over all contributions at once, in values and gradients."""
  model = nn.Conv(3, (3, 3), strides=2, padding=((1, 1), (1, 1)))
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (2, 7, 7, 4))
  areas = growth.whole_areas(model, (7, 7, 4))
  assert {name: area.shape for name, area in areas.items()} == {"": (4, 4, 4, 3)}
  area = jax.random.bernoulli(keys[1], 0.5, areas[""].shape)
  variables = model.init(keys[2], x)
  windows = {"strides": (2, 2), "padding": ((1, 1), (1, 1))}

  def reference(variables):
    p = variables["params"]
    terms = growth.contributions(x, p["kernel"], **windows)
    return jnp.sum(terms * area[None], axis=3) + p["bias"][None, None, None]

  partial = lambda variables: growth.with_areas(model.apply, {"": area})(variables, x)
  square = lambda f: lambda variables: jnp.sum(f(variables) ** 2)
  chex.assert_trees_all_close(
    partial(variables), reference(variables), rtol=1e-5, atol=1e-5
  )
  chex.assert_trees_all_close(
    jax.grad(square(partial))(variables),
    jax.grad(square(reference))(variables),
    rtol=1e-4,
    atol=1e-4,
  )
  # Contributions outside of the areas are measured too: they may be large.
  measured = growth.area_contributions(model.apply, {"": area})(variables, x)
  terms = growth.contributions(x, variables["params"]["kernel"], **windows)
  chex.assert_trees_all_close(
    measured[""], jnp.mean(jnp.abs(terms), axis=0), rtol=1e-5, atol=1e-6
  )


def test_paddings_of_flax_and_its_dtypes_are_those_of_the_model():
  x = jax.random.normal(jax.random.key(0), (2, 5, 5, 2))
  for padding in (1, (1, 2), ((0, 1), (1, 0)), "SAME", "VALID"):
    model = nn.Conv(3, (3, 3), padding=padding, dtype=jnp.bfloat16, use_bias=False)
    variables = model.init(jax.random.key(1), x)
    apply = growth.with_areas(model.apply, growth.whole_areas(model, (5, 5, 2)))
    whole, part = model.apply(variables, x), apply(variables, x)
    assert part.dtype == jnp.bfloat16
    chex.assert_trees_all_close(
      *(v.astype(jnp.float32) for v in (whole, part)), atol=0.1
    )


@pytest.mark.parametrize(
  ("module", "message"),
  [
    (nn.Conv(2, (3, 3), kernel_dilation=2), r"'kernel_dilation': 2.*at ''"),
    (nn.Conv(2, (3, 3), padding=1, input_dilation=(1, 2)), "'input_dilation'"),
    (nn.Conv(2, (3, 3), feature_group_count=2), "'feature_group_count': 2"),
    (nn.Conv(2, (3, 3), padding="CIRCULAR"), "'padding': 'CIRCULAR'"),
    (nn.Conv(2, (3, 3), mask=jnp.ones((3, 3, 2, 2))), "'mask': 'an array'"),
    (nn.ConvTranspose(2, (3, 3)), "convolutions, got ConvTranspose"),
  ],
)
def test_other_convolutions_have_no_areas(module, message):
  x = jnp.ones((1, 5, 5, 2))
  variables = module.init(jax.random.key(0), x)
  apply = growth.with_areas(module.apply, growth.whole_areas(module, (5, 5, 2)))
  with pytest.raises(ValueError, match=message):
    apply(variables, x)


@pytest.mark.slow
def test_a_model_with_areas_is_not_edited():
  model = models.LeNet5(features=(3, 2, 4))
  x = jax.random.normal(jax.random.key(0), (2, 16, 16, 1))
  variables = jax.jit(model.init)(jax.random.key(1), x)
  areas = {"conv1": jnp.ones((12, 12, 1, 3), bool)}
  apply = jax.jit(growth.with_areas(model.apply, areas))
  np.testing.assert_allclose(
    apply(variables, x), model.apply(variables, x), rtol=1e-4, atol=1e-5
  )
  nothing = {"conv1": jnp.zeros((12, 12, 1, 3), bool)}
  blind = jax.jit(growth.with_areas(model.apply, nothing))(variables, x)
  np.testing.assert_array_equal(blind[0], blind[1])


def test_a_warm_up_leaves_initial_values_of_grown_weights_whole():
  tx = sj.rigl(optax.sgd(0.125), 0.5, update_every=1, grow_init="initial", end_step=2)
  tx = growth.warm_up(tx, steps=4)
  params = {"kernel": jnp.array([[4.0, 3.0, 2.0, 1.0]])}
  first = {"kernel": jnp.array([[True, True, False, False]])}
  state = sj.with_masks(tx.init(params), first)
  params = sj.apply_masks(params, first)
  update = jax.jit(tx.update)
  third = []
  for _ in range(6):  # the third weight is grown by its gradient, then moves by -0.5
    grads = {"kernel": jnp.array([[0.0, 0.0, 4.0, 0.0]])}
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
    third.append(params["kernel"][0, 2].item())
  assert third == [2.0, 1.875, 1.625, 1.25, 0.75, 0.25]


def test_a_weight_grown_in_the_first_update_is_warmed_up():
  tx = growth.warm_up(sj.rigl(optax.sgd(1.0), 0.5, update_every=1), steps=4)
  params = {"kernel": jnp.array([[4.0, 3.0, 2.0, 1.0]])}
  params, state = sj.init(tx, params)
  before = sj.masks(state)["kernel"]
  grads = {"kernel": jnp.where(before, 0.0, 9.0)}
  _, state = jax.jit(tx.update)(grads, state, params)
  grown = sj.masks(state)["kernel"] & ~before
  assert grown.any()
  assert state.ages["kernel"][grown].tolist() == [1] * int(grown.sum())
