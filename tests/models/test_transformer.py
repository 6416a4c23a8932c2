"""The transformer is causal; the mixture of experts is that of its paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import models
from sparsejax.models import _mixture_of_experts as moe
from sparsejax.training import _functions as functions

SMALL = {"length": 12, "depth": 1, "width": 16, "heads": 2, "expansion": 2}
FOUR = {"num_experts": 4, "expert_kwargs": {"capacity_factor": 4.0}}


@pytest.fixture(scope="module", params=[{}, FOUR], ids=["dense", "experts"])
def model(request):
  module = models.create("transformer", num_classes=32, **SMALL, **request.param)
  tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 32)
  params, state = jax.jit(functions.from_flax(module).init)(jax.random.key(0), tokens)
  assert state == {}
  return functions.from_flax(module), params, tokens


def test_a_place_sees_what_came_before_and_nothing_else(model):
  f, params, tokens = model
  apply = jax.jit(lambda t: f.apply(params, {}, t, None)[0])
  logits, other = apply(tokens), apply(tokens.at[:, 7].set((tokens[:, 7] + 1) % 32))
  assert logits.shape == (2, 12, 32)
  np.testing.assert_allclose(logits[:, :7], other[:, :7], atol=1e-5)
  assert np.all(np.any(np.abs(logits[:, 7:] - other[:, 7:]) > 1e-5, axis=(0, 2)))


def test_bad_sizes_are_refused():
  tokens = jnp.zeros((1, 13), jnp.int32)
  init = lambda **kwargs: jax.eval_shape(
    models.create("transformer", **SMALL | kwargs).init, jax.random.key(0), tokens
  )
  with pytest.raises(ValueError, match="tokens must be at most 12 long; got 13"):
    init()
  with pytest.raises(ValueError, match=r"width must be a multiple of heads \(3\)"):
    init(heads=3, length=13)
  for kwargs, rule in (
    ({"k": 4}, r"k must be between 1 and num_experts - 1 \(3\); got 4"),
    ({"capacity_factor": 0.0}, "capacity_factor must be above 0; got 0.0"),
  ):
    with pytest.raises(ValueError, match=rule):
      init(length=13, num_experts=4, expert_kwargs=kwargs)


def test_gates_are_a_softmax_over_the_best_k():
  clean = jnp.array([[1.0, 3.0, 2.0, 0.0]])
  noise = jnp.array([[0.0, 0.0, 0.0, 8.0]])
  scale = jnp.full((1, 4), 0.5)
  gates, chosen, load = jax.jit(moe.noisy_top_k, static_argnums=3)(
    clean, scale, noise, 2
  )
  assert chosen.tolist() == [[3, 1]]  # 0 + 8 / 2 = 4 and 3
  np.testing.assert_allclose(gates[0, [3, 1]], jax.nn.softmax(jnp.array([4.0, 3.0])))
  assert gates[0, [0, 2]].tolist() == [0, 0]
  # Without the expert itself the second best of H is 3, 2, 3, 2.
  phi = lambda x: float(jax.scipy.stats.norm.cdf(x))
  expected = [phi((c - t) / 0.5) for c, t in ((1, 3), (3, 2), (2, 3), (0, 2))]
  np.testing.assert_allclose(load[0], expected, rtol=1e-5)


def test_full_experts_leave_tokens_out_first_choices_last():
  chosen = jnp.array([[[0, 1], [1, 0], [0, 1]]])
  gates = jnp.array([[[0.7, 0.3], [0.4, 0.6], [0.8, 0.2]]])
  combine = moe.dispatch(moe.Gating(gates, chosen, gates), 2)
  # Expert 0: first choices of tokens 0 and 2. Expert 1: token 1, then token 0's second.
  expected = np.zeros((1, 3, 2, 2))
  expected[0, 0, 0, 0], expected[0, 2, 0, 1] = 0.7, 0.8
  expected[0, 1, 1, 0], expected[0, 0, 1, 1] = 0.6, 0.3
  np.testing.assert_allclose(combine, expected, rtol=1e-6)


def test_the_layer_is_the_sum_of_its_experts():
  layer = models.MixtureOfExperts(3, 8, k=2, capacity_factor=9.0)
  x = jax.random.normal(jax.random.key(2), (2, 5, 6))
  params = jax.jit(layer.init)(jax.random.key(0), x)["params"]
  params = params | {"gate": jax.random.normal(jax.random.key(3), (6, 3))}
  y = jax.jit(layer.apply)({"params": params}, x)
  h = x @ params["gate"]
  gates = moe.noisy_top_k(h, jnp.ones_like(h), None, 2).gates
  each = [
    jax.nn.gelu(x @ up) @ down
    for up, down in zip(params["up"], params["down"], strict=True)
  ]
  np.testing.assert_allclose(
    y, jnp.einsum("ble,eblw->blw", gates, jnp.stack(each)), atol=1e-5
  )


def test_losses_are_sown_while_training_only():
  module = models.create("transformer", num_classes=32, **SMALL, **FOUR)
  f = functions.from_flax(module)
  tokens = jnp.zeros((2, 12), jnp.int32)
  params, _ = jax.jit(f.init)(jax.random.key(0), tokens)
  _, state = jax.jit(f.apply)(params, {}, tokens, jax.random.key(1))
  loss, state = functions.auxiliary_loss(state)
  assert float(loss) > 0
  assert state == {}
  assert jax.eval_shape(lambda p: f.apply(p, {}, tokens, None), params)[1] == {}
