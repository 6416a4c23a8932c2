"""Models that keep more than parameters: batch normalization, dropout."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj
from sparsejax.training import _at_initialization as at_initialization
from sparsejax.training import _checkpoint as checkpoint
from sparsejax.training import _functions as functions
from sparsejax.training import _step as step


class Net(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Dense(8)(x.reshape(x.shape[0], -1))
    x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
    x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
    return nn.Dense(3)(x)


MODEL = functions.from_flax(Net())
TX = sj.static_sparse(optax.sgd(0.1), density=0.5)


@pytest.fixture(scope="module")
def start():
  params, state = MODEL.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
  return step.TrainState(
    jnp.int32(0), jax.random.key(1), params, state, TX.init(params)
  )


@pytest.fixture(scope="module")
def train():
  def one(state, images, labels):
    return step.train_step(
      state, images, labels, jnp.zeros((), bool), apply=MODEL.apply, tx=TX
    )[0]

  return jax.jit(one)


class Sower(nn.Module):
  """A module that sows a loss and behaves the same in training and evaluation."""

  @nn.compact
  def __call__(self, x):
    kernel = self.param("kernel", nn.initializers.ones, (4, 3))
    self.sow("losses", "decay", 2 * jnp.sum(kernel**2))
    return x.reshape(x.shape[0], -1) @ kernel


IMAGES = jnp.asarray(np.random.default_rng(0).normal(3, 2, (16, 2, 2, 1)), jnp.float32)
LABELS = jnp.arange(16) % 3


def test_running_averages_follow_the_batches_and_only_kernels_are_sparse(start, train):
  after = train(start, IMAGES, LABELS)
  dense = start.params["Dense_0"]
  hidden = IMAGES.reshape(16, 4) @ dense["kernel"] + dense["bias"][None]
  average = after.model_state["batch_stats"]["BatchNorm_0"]["mean"]
  np.testing.assert_allclose(average, 0.5 * hidden.mean(0), rtol=1e-4, atol=1e-5)
  live = jax.tree_util.tree_leaves_with_path(sj.masks(after.opt_state))
  assert [path[0].key for path, _ in live] == ["Dense_0", "Dense_1"]


def test_evaluation_changes_nothing_and_draws_nothing(start, train):
  state = train(start, IMAGES, LABELS)
  logits, after = MODEL.apply(state.params, state.model_state, IMAGES, None)
  assert after is state.model_state
  one, _ = MODEL.apply(state.params, state.model_state, IMAGES[:1], None)
  np.testing.assert_allclose(one[0], logits[0], rtol=1e-4, atol=1e-5)


def test_what_is_not_finite_does_not_reach_the_averages(start, train):
  after = train(start, IMAGES.at[0].set(jnp.nan), LABELS)
  for new, old in zip(
    jax.tree.leaves(after.model_state), jax.tree.leaves(start.model_state), strict=True
  ):
    np.testing.assert_array_equal(new, old)


def test_averages_are_in_the_checkpoint(start, train, tmp_path):
  state = train(start, IMAGES, LABELS)
  checkpoints = checkpoint.Checkpoints(tmp_path, {})
  checkpoints.save(1, state, {})
  restored = checkpoints.restore(start)
  checkpoints.close()
  for new, old in zip(
    jax.tree.leaves(restored.state.model_state),
    jax.tree.leaves(state.model_state),
    strict=True,
  ):
    np.testing.assert_array_equal(new, old)


def test_losses_are_kept_of_a_module_without_a_train_argument():
  model = functions.from_flax(Sower())
  params, state = model.init(jax.random.key(0), IMAGES[:1])
  assert state == {}
  _, trained = model.apply(params, state, IMAGES, jax.random.key(1))
  loss, trained = functions.auxiliary_loss(trained)
  assert (float(loss), trained) == (24.0, {})  # 2 * 12 weights of 1
  assert model.apply(params, state, IMAGES, None)[1] == {}


def test_masks_before_training_are_of_the_whole_loss():
  # Blank images: the cross-entropy has no gradient, so SNIP scores |w dL/dw| = 4 w^2.
  find = at_initialization.mask_finder("snip", Sower(), 0.5, {}, {})
  kernel = 1 + jnp.arange(12.0).reshape(4, 3)
  masks = find({"kernel": kernel}, {}, [(jnp.zeros((4, 2, 2, 1)), jnp.arange(4) % 3)])
  np.testing.assert_array_equal(masks["kernel"], kernel > 6)
