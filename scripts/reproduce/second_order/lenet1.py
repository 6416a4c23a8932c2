"""LeNet-1 on digits, pruned by OBD and by magnitude, with and without retraining."""

import functools
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax.scores import gauss_newton_diagonal, obd_saliency
from sparsejax.second_order import (
  keep_best,
  obd_rule,
  prune_retrain,
  score_rule,
)

BATCH = 100
# Of .005, .01 and .02, by the squared error on 3,000 other training images.
LEARNING_RATE = 1e-2
# The maps of the first layer, of four, that each map of the second layer sees.
SEEN = ((0,), (0, 1), (0, 1), (1,), (0, 1), (0, 1))
SEEN += tuple(tuple(i + 2 for i in inputs) for inputs in SEEN)  # the other two
FREE = 2_578
LIVE = tuple(FREE - round(FREE * tenth / 10) for tenth in range(1, 10))


def initialize(key: jax.Array):
  """Returns parameters, uniform within 2.4 / fan-in, and which of them exist."""
  keys = iter(jax.random.split(key, 3))

  def uniform(shape, fan_in):
    bound = 2.4 / np.asarray(fan_in)
    return bound * jax.random.uniform(next(keys), shape, minval=-1.0, maxval=1.0)

  table = np.zeros((1, 1, 4, 12), bool)
  for output, inputs in enumerate(SEEN):
    table[..., inputs, output] = True
  fan_in = 25.0 * table.sum(2, keepdims=True) + 1
  params = {
    "conv1": {"kernel": uniform((5, 5, 1, 4), 26.0), "bias": jnp.zeros(4)},
    "pool1": {"scale": jnp.ones(4), "bias": jnp.zeros(4)},
    "conv2": {"kernel": uniform((5, 5, 4, 12), fan_in), "bias": jnp.zeros(12)},
    "pool2": {"scale": jnp.ones(12), "bias": jnp.zeros(12)},
    "dense": {"kernel": uniform((192, 10), 193.0), "bias": jnp.zeros(10)},
  }
  exists = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
  exists["conv2"]["kernel"] = jnp.broadcast_to(table, (5, 5, 4, 12))
  return jax.tree.map(lambda p, e: jnp.where(e, p, 0), params, exists), exists


def squash(x: jax.Array) -> jax.Array:
  return 1.7159 * jnp.tanh(2 / 3 * x)


def apply(params, images: jax.Array) -> jax.Array:
  """Computes the ten outputs for images `(b, 28, 28)`.

  Maps are `(channels, height, width, b)`, and a convolution is one product of patches:
  XLA's convolution is slow on a CPU with so few channels.
  """
  x = jnp.moveaxis(images, 0, -1)[None]
  for i in "12":
    layer, pool = params[f"conv{i}"], params[f"pool{i}"]
    height, width, batch = x.shape[1] - 4, x.shape[2] - 4, x.shape[3]
    shifts = itertools.product(range(5), repeat=2)
    patches = [x[:, i : i + height, j : j + width] for i, j in shifts]
    kernel = layer["kernel"].reshape(-1, len(layer["bias"]))
    x = kernel.T @ jnp.stack(patches).reshape(len(kernel), -1)
    x = squash(x + layer["bias"][:, None]).reshape(-1, height, width, batch)
    # A pooling layer has a coefficient and a bias per map.
    x = x.reshape(-1, height // 2, 2, width // 2, 2, batch).mean((2, 4))
    scale, bias = (pool[name][:, None, None, None] for name in ("scale", "bias"))
    x = squash(x * scale + bias)
  layer = params["dense"]
  return squash(x.reshape(-1, x.shape[3]).T @ layer["kernel"] + layer["bias"][None])


def loss(params, images, targets):
  """Half the squared error of an image: what `gauss_newton_diagonal` assumes."""
  return jnp.mean(jnp.sum((apply(params, images) - targets) ** 2, 1)) / 2


@jax.jit
def measure(params, images, targets):
  """Returns the mean squared error of an output, in dB, and the error, in percent."""
  outputs = jax.lax.map(lambda x: apply(params, x[None])[0], images, batch_size=500)
  mse = jnp.mean((outputs - targets) ** 2)
  wrong = jnp.argmax(outputs, 1) != jnp.argmax(targets, 1)
  return 10 * jnp.log10(mse), 100 * jnp.mean(wrong.astype(jnp.float32))


@functools.partial(jax.jit, static_argnames="epochs")
def train(params, masks, images, targets, key, epochs: int):
  """Trains the live parameters with Adam and a cosine schedule."""
  steps = len(images) // BATCH
  tx = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, epochs * steps))

  def masked_loss(params, *batch):
    # Masked parameters have no gradients, so Adam leaves them at 0.0.
    return loss(jax.tree.map(lambda p, m: jnp.where(m, p, 0), params, masks), *batch)

  def step(carry, rows):
    params, state = carry
    grads = jax.grad(masked_loss)(params, images[rows], targets[rows])
    updates, state = tx.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), None

  def epoch(key):
    return jax.random.permutation(key, len(images))[: steps * BATCH]

  rows = jax.vmap(epoch)(jax.random.split(key, epochs)).reshape(-1, BATCH)
  return jax.lax.scan(step, (params, tx.init(params)), rows)[0][0]


def diagonal(params, images):
  return gauss_newton_diagonal(apply, params, images, loss="squared", batch_size=50)


@functools.partial(jax.jit, static_argnames=("name", "epochs"))
def pruned_and_retrained(name: str, params, exists, images, targets, key, epochs: int):
  """Deletes to each number of `LIVE` in turn, and retrains after each."""
  rule = {
    "obd": obd_rule(lambda p: diagonal(p, images)),
    "magnitude": score_rule(lambda p, masks: jax.tree.map(jnp.abs, p)),
  }[name]
  retrain = lambda p, masks: train(p, masks, images, targets, key, epochs)
  whole = lambda p: loss(p, images, targets)
  return prune_retrain(rule, retrain, whole, params, exists, jnp.array(LIVE))


def one_network(
  seed: int, train_set, test_set, epochs: int, retrain_epochs: int
) -> dict[tuple[str, str], float]:
  """Trains and prunes one network, and returns its measurements by case and metric."""
  found = {}
  started = time.monotonic()
  first, again, start = jax.random.split(jax.random.key(seed), 3)
  params, exists = initialize(start)
  params = train(params, exists, *train_set, first, epochs)

  def record(case, params):
    for split, data in (("train", train_set), ("test", test_set)):
      decibels, error = measure(params, *data)
      found[case, f"{split}_mse_decibels"] = float(decibels)
    found[case, "test_error_percent"] = float(error)

  record("lenet1/dense", params)
  # Delete without retraining, by saliencies and magnitudes of the trained network.
  saliency = obd_saliency(params, jax.jit(diagonal)(params, train_set[0]))
  scores = {"obd": saliency, "magnitude": jax.tree.map(jnp.abs, params)}
  before = float(jax.jit(loss)(params, *train_set))
  best = jax.jit(keep_best)
  for live in LIVE:
    for name, score in scores.items():
      masks = best(score, exists, live)
      kept = jax.tree.map(lambda p, m: jnp.where(m, p, 0), params, masks)
      case = f"lenet1/parameters={live}/{name}"
      record(case, kept)
      if name == "obd":
        gone = jax.tree.map(lambda s, m: jnp.sum(jnp.where(m, 0, s)), saliency, masks)
        predicted = before + float(sum(jax.tree.leaves(gone)))
        mse = 2 * predicted / 10  # of one output
        found[case, "predicted_mse_decibels"] = float(10 * np.log10(mse))
  # Delete a tenth per round, and retrain.
  for name in scores:
    path = pruned_and_retrained(name, params, exists, *train_set, again, retrain_epochs)
    for i, live in enumerate(LIVE):
      record(
        f"lenet1/parameters={live}/{name}/retrained",
        jax.tree.map(lambda leaf, i=i: leaf[i], path.retrained),
      )
  print(f"seed {seed}: {time.monotonic() - started:.0f} s", flush=True)
  return found
