"""MNIST and an MLP, for the scripts on second-order methods and on theory."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax.training import data


def mnist(data_dir: str, train: int | None = None, test: int | None = None):
  """Loads MNIST as flat pixels in [0, 1] and integer labels, for training and test."""
  splits = data.load("mnist", data_dir, validation_fraction=0.0)

  def arrays(split, count):
    images = split.images[:count].reshape(-1, 784).astype(np.float32) / 255
    return images, split.labels[:count].astype(np.int32)

  return arrays(splits.train, train), arrays(splits.test, test)


def mlp_apply(params, x):
  """Computes the logits of an MLP with ReLU between its layers, in the keys' order."""
  names = sorted(params)
  for name in names:
    x = x @ params[name]["kernel"] + params[name]["bias"][None]
    x = jax.nn.relu(x) if name != names[-1] else x
  return x


def cross_entropy(params, x, y):
  losses = optax.softmax_cross_entropy_with_integer_labels(mlp_apply(params, x), y)
  return jnp.mean(losses)


@jax.jit
def error_percent(params, x, y):
  wrong = jnp.argmax(mlp_apply(params, x), 1) != y
  return 100 * jnp.mean(wrong.astype(jnp.float32))


def train_mlp(sizes: Sequence[int], x, y, seed: int, steps: int, batch: int = 60):
  """Trains an MLP with Adam at 1.2e-3, as one compiled loop.

  Args:
    sizes: layer widths, inputs and outputs included.
    x: float32 array `(n, sizes[0])`.
    y: int32 array `(n,)`.
    seed: seed of initial weights and batches.
    steps: number of optimizer steps.
    batch: examples per step.

  Returns:
    `{"Dense_0": {"kernel", "bias"}, ...}`.
  """
  keys = jax.random.split(jax.random.key(seed), len(sizes))
  glorot = jax.nn.initializers.glorot_normal()
  params = {
    f"Dense_{i}": {"kernel": glorot(keys[i], (m, n)), "bias": jnp.zeros(n)}
    for i, (m, n) in enumerate(itertools.pairwise(sizes))
  }
  tx = optax.adam(1.2e-3)

  @jax.jit
  def run(params, x, y, key):
    def step(carry, key):
      params, state = carry
      rows = jax.random.randint(key, (batch,), 0, x.shape[0])
      grads = jax.grad(cross_entropy)(params, x[rows], y[rows])
      updates, state = tx.update(grads, state, params)
      return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(key, steps)
    return jax.lax.scan(step, (params, tx.init(params)), keys)[0][0]

  return run(params, jnp.asarray(x), jnp.asarray(y), keys[-1])
