"""FLOPs from the jaxpr: the papers' dense rows exactly, masks, loops, zeros."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import models
from sparsejax.analysis.costs import _multiply_adds as multiply_adds
from sparsejax.analysis.costs import flops, sizes


def abstract(model, shape):
  images = jax.ShapeDtypeStruct(shape, jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), images), images


def of(model, shape, masks=None):
  variables, images = abstract(model, shape)
  return flops(model.apply, variables, masks, images)


def half(shape):
  """A mask of which every second weight is live."""
  return np.arange(np.prod(shape)).reshape(shape) % 2 == 0


def test_nests_dense_rows():
  assert of(models.LeNet300(), (5, 28, 28, 1)).flops == 532_400
  lenet5 = of(models.LeNet5(), (5, 28, 28, 1))
  assert lenet5.flops == lenet5.dense_flops == 4_586_000
  assert lenet5.layers["params/conv2/kernel"] == (1_600_000, 1_600_000, 25_000, 25_000)
  assert lenet5.layers["params/conv2/kernel"].uses == 64


def test_resnet50_is_8_2_billion():
  cost = of(models.ResNet50(), (1, 224, 224, 3))
  assert (len(cost.layers), cost.flops) == (54, 8_178_368_512)


def test_alexnet_is_1_5_billion():
  """The original, of two groups: Han et al. (2015), table 4, by layer in millions."""

  class AlexNet(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.relu(nn.Conv(96, (11, 11), 4, "VALID")(x))
      x = nn.max_pool(x, (3, 3), (2, 2))
      x = nn.relu(nn.Conv(256, (5, 5), feature_group_count=2)(x))
      x = nn.max_pool(x, (3, 3), (2, 2))
      x = nn.relu(nn.Conv(384, (3, 3))(x))
      x = nn.relu(nn.Conv(384, (3, 3), feature_group_count=2)(x))
      x = nn.relu(nn.Conv(256, (3, 3), feature_group_count=2)(x))
      x = nn.max_pool(x, (3, 3), (2, 2)).reshape(x.shape[0], -1)
      x = nn.relu(nn.Dense(4096)(x))
      return nn.Dense(1000)(nn.relu(nn.Dense(4096)(x)))

  cost = of(AlexNet(), (1, 227, 227, 3))
  millions = [round(2e-6 * layer.dense) for layer in cost.layers.values()]
  assert millions == [211, 448, 299, 224, 150, 75, 34, 8]
  assert round(cost.flops / 1e9, 2) == 1.45


def test_masks_weigh_each_layer_by_its_positions():
  model = models.LeNet5()
  variables, images = abstract(model, (1, 28, 28, 1))
  params = variables["params"]
  masks = jax.tree.map(lambda p: half(p.shape) if len(p.shape) > 1 else None, params)
  apply = lambda params, x: model.apply({"params": params}, x)
  cost = flops(apply, params, masks, images)
  want = 576 * 250 + 64 * 12_500 + 200_000 + 2_500
  assert (cost.multiply_adds, cost.dense_flops) == (want, 4_586_000)
  assert multiply_adds.forward(
    multiply_adds.uses(model, (28, 28, 1)),
    {name: layer.live for name, layer in cost.layers.items()},
  ) == pytest.approx(want)


def test_stacked_layers_count_one_by_one():
  model = models.VanillaCNN(depth=3, channels=4)
  variables, images = abstract(model, (2, 4, 4, 1))
  masks = jax.tree.map(lambda p: np.ones(p.shape, bool), variables)
  trunk = masks["params"]["trunk"]["kernel"]
  trunk[0, 0] = trunk[2] = False
  cost = flops(model.apply, variables, masks, images)
  assert cost.layers["params/trunk/kernel"] == (4 * 240, 4 * 432, 240, 432)
  assert cost.layers["params/readout/kernel"].uses == 1


def test_kernels_are_followed_through_what_is_done_to_them():
  mask = half((4, 3))

  def apply(params, x):
    w = jnp.concatenate([params["a"].T, params["b"].reshape(2, 4)]).astype(jnp.float32)
    w = jnp.pad(w, ((0, 0), (1, 1)))[:, 1:-1] * 2.0
    tied = jnp.tanh(x @ w.T) @ w
    return tied @ params["c"]

  shapes = {"a": (4, 3), "b": (8,), "c": (4, 4)}
  params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
  masks = {"a": mask, "b": None, "c": half((4, 4))}
  cost = flops(apply, params, masks, jnp.ones((7, 4)))
  assert cost.layers == {"a*b": (2 * 14, 2 * 20, 14, 20), "c": (8, 16, 8, 16)}


def test_a_mask_in_the_function_and_a_product_of_parameters():
  mask = half((4, 4))
  apply = lambda p, x: x @ (p["u"] @ p["v"]) @ jnp.where(mask, p["w"], 0.0)
  params = {"u": jnp.ones((4, 1)), "v": jnp.ones((1, 4)), "w": jnp.ones((4, 4))}
  masks = {"u": half((4, 1)), "v": None, "w": None}
  layers = flops(apply, params, masks, jnp.ones((1, 4))).layers
  assert layers["u*v"].multiply_adds == 8
  assert layers["w"].multiply_adds == 8


def test_products_of_activations_have_no_weights():
  attention = lambda p, x: jnp.einsum("nqd,nkd->nqk", x @ p, x)
  layers = flops(attention, jnp.ones((2, 2)), None, jnp.ones((3, 5, 2))).layers
  assert layers[""] == (20, 20, 4, 4)
  assert layers["dot_general"] == (50, 50, 0, 0)


def test_what_only_moves_data_is_free():
  """ConvLocal cuts patches by a product with zeros and ones; one_hot looks up rows."""
  local = nn.ConvLocal(4, (3, 3), padding="VALID")
  cost = of(local, (1, 9, 9, 6))
  # 7 x 7 positions, each with 3 x 3 x 6 x 4 weights of its own.
  assert cost.multiply_adds == 49 * 54 * 4 == 10_584
  assert list(cost.layers) == ["params/kernel"]
  params, tokens = (
    {"e": jnp.ones((11, 4)), "w": jnp.ones((4, 3))},
    jnp.zeros((2, 7), int),
  )
  one_hot = lambda p, t: jax.nn.one_hot(t, 11) @ p["e"] @ p["w"]
  assert flops(one_hot, params, None, tokens).layers == {"w": (84, 84, 12, 12)}
  shift = jnp.eye(5, k=1)
  layers = flops(lambda w, x: x @ shift @ w, jnp.ones((5, 2)), None, jnp.ones((1, 5)))
  assert layers.multiply_adds == 10
  # A sum of two, or a comparison that may hold several times, is arithmetic.
  sums = flops(lambda w, x: x @ (shift + shift.T), None, None, jnp.ones((1, 5)))
  assert (sums.multiply_adds, sums.dense_multiply_adds) == (8, 25)
  several = flops(
    lambda w, x: (x > 0.0).astype(jnp.float32) @ w,
    jnp.ones((5, 2)),
    None,
    jnp.ones((1, 5)),
  )
  assert several.multiply_adds == 10


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8])
def test_token_models_are_counted(dtype):
  kwargs: Any = {"num_classes": 11, "length": 6, "depth": 1, "width": 8, "heads": 2}
  tokens = jax.ShapeDtypeStruct((3, 6), dtype)
  counted = multiply_adds.uses(models.Transformer(**kwargs), tokens)
  assert len(counted) == 7
  assert set(counted.values()) == {6}


def test_shared_weights_of_a_loop_count_every_round():
  def recurrent(w, x):
    return jax.lax.fori_loop(0, 6, lambda _, h: jnp.tanh(h @ w), x)

  cost = flops(recurrent, jnp.ones((3, 3)), np.eye(3, dtype=bool), jnp.ones((1, 3)))
  assert cost.layers[""] == (18, 54, 3, 9)


def test_zeros_are_skipped_when_asked():
  w, x = jnp.array([[1.0, 0.0], [2.0, 3.0]]), jnp.array([[1.0, 0.0], [1.0, 1.0]])
  dense = lambda w, x: x @ w
  cost = flops(dense, w, np.ones((2, 2), bool), x, skip_zeros=True)
  assert cost.multiply_adds == (1 + 3) / 2
  assert cost.dense_multiply_adds == 4
  mask = np.array([[True, True], [False, True]])
  assert flops(dense, w, mask, x, skip_zeros=True).multiply_adds == (1 + 2) / 2
  conv = lambda w, x: models.conv2d(x, w, padding="SAME")
  ones = jnp.ones((2, 3, 3, 1)), jnp.ones((3, 3, 1, 1))
  assert flops(conv, ones[1], None, ones[0]).multiply_adds == 81
  assert flops(conv, ones[1], None, ones[0], skip_zeros=True).multiply_adds == 49


def test_what_depends_on_values_is_refused():
  def until_small(w, x):
    return jax.lax.while_loop(lambda h: jnp.sum(h) > 1.0, lambda h: h @ w, x)

  with pytest.raises(ValueError, match=r"loops of known length .* got a 'while'"):
    flops(until_small, jnp.ones((3, 3)), None, jnp.ones((1, 3)))
  with pytest.raises(ValueError, match=r"'w' has shape \(3, 3\), its mask \(3,\)"):
    flops(
      lambda p, x: x @ p["w"],
      {"w": jnp.ones((3, 3))},
      {"w": np.ones(3, bool)},
      jnp.ones((1, 3)),
    )


def test_sizes():
  params = {"w": jnp.ones((3, 5), jnp.bfloat16), "b": jnp.ones(5)}
  masks = {"w": half((3, 5)), "b": None}
  got = sizes(params, masks)
  assert got == (20, 8 + 5, 30 + 20, 2 + 16 + 20, 8 * 6 + 16 + 20)
  assert sizes(params, None) == (20, 20, 50, 50, 50)


def test_zeros_are_counted_where_they_are_at_any_batch_size():
  """`jnp.matmul` squeezes axes of size 1, so values are numbered differently."""
  draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
  params = {"q": draw(0, 6, 2, 3), "k": draw(1, 6, 2, 3), "o": jnp.zeros((6, 6))}

  def attend(p, x):
    q, k = (jnp.einsum("bsd,dhk->bhsk", x, p[n]) for n in "qk")
    weights = jnp.matmul(q, k.swapaxes(-1, -2))
    return jnp.einsum("bhqs,bsd->bqd", weights, x) @ p["o"]

  for batch in (1, 4):
    cost = flops(attend, params, None, draw(2, batch, 5, 6), skip_zeros=True)
    assert cost.layers["o"].multiply_adds == 0
    assert cost.layers["q"].multiply_adds == cost.layers["q"].dense == 180
