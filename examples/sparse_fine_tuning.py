"""Fine-tunes a network on turned digits by changing one weight in fifty.

Prints the accuracy on upright and on turned digits of: the trained network, a delta of
all weights, and sparse deltas with random, FISH and SpIEL masks. Takes about half
a minute on a CPU.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

import sparsejax as sj
from sparsejax import post_training

DENSITY, STEPS = 0.02, 400

images, labels = load_digits(return_X_y=True)  # 1,797 images of 8x8 pixels
upright = images.astype("float32") / 16
turned = np.rot90(upright.reshape(-1, 8, 8), axes=(1, 2)).reshape(-1, 64)
train, test = slice(0, 1500), slice(1500, None)
model = nn.Sequential([nn.Dense(100), nn.relu, nn.Dense(10)])


def example_loss(params, example):
  x, y = example
  logits = model.apply(params, x)
  return optax.softmax_cross_entropy_with_integer_labels(logits, y)


def accuracy(params, x):
  return float((model.apply(params, x[test]).argmax(-1) == labels[test]).mean())


def fit(tx, params, state, weights, x):
  """Trains for `STEPS` full batches; `weights` maps params to the network's."""

  def loss(params):
    losses = jax.vmap(example_loss, (None, 0))(weights(params), (x, labels[train]))
    return losses.mean()

  @jax.jit
  def step(params, state):
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  for _ in range(STEPS):
    params, state = step(params, state)
  return params, state


# The trained network, on upright digits. From here on it is a constant.
adam = optax.adam(3e-3)
start = model.init(jax.random.key(0), upright)
base, _ = fit(adam, start, adam.init(start), lambda params: params, upright[train])
size = sum(leaf.size for leaf in jax.tree.leaves(base))
zero = jax.tree.map(jnp.zeros_like, base)

# Fixed masks: drawn at random, or of the largest Fisher information on 256 examples.
fixed = sj.static_sparse(optax.adam(1e-2), DENSITY, where=".*")
examples = (turned[:256], labels[:256])
fish = post_training.fish_masks(example_loss, base, examples, DENSITY)
# Masks that move: the smallest changes are given back, and other weights tried.
moving = post_training.spiel(
  optax.adam(1e-2),
  DENSITY,
  update_every=20,
  end_step=STEPS * 3 // 4,
  drop_fraction=optax.linear_schedule(0.2, 0.0, STEPS * 3 // 4),
)
starts = {
  "all weights": (optax.adam(1e-2), optax.adam(1e-2).init(zero)),
  "random": (fixed, fixed.init(zero)),
  "FISH": (fixed, sj.with_masks(fixed.init(zero), fish)),
  "SpIEL": (moving, sj.with_masks(moving.init(zero), fish)),
}
tuned = {"no delta": base}
for name, (tx, state) in starts.items():
  delta, _ = fit(
    tx, zero, state, lambda d: post_training.with_delta(base, d), turned[train]
  )
  tuned[name] = post_training.with_delta(base, delta)

print(f"{'':12} changed of {size}  upright  turned")
changed, accuracies = {}, {}
for name, params in tuned.items():
  pairs = zip(jax.tree.leaves(params), jax.tree.leaves(base), strict=True)
  changed[name] = sum(int((a != b).sum()) for a, b in pairs)
  accuracies[name] = accuracy(params, turned)
  before = accuracy(params, upright)
  print(f"{name:12} {changed[name]:15d}  {before:7.3f}  {accuracies[name]:6.3f}")
