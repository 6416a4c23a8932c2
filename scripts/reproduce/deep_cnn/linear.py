"""Linear controls of the deep CNNs: softmax regression on pixels or an untrained trunk.

Both see as many images in as many steps as the network that they are compared with, in
its order and by its schedule. Their learning rate is the best of `RATES` on validation
images, the last of the order, which are not trained on.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scripts.reproduce.deep_cnn.cases import WARM_UP, Case, make_model

# Divided by the number of inputs, whose mean square is 1 each.
RATES = (3.0, 10.0, 20.0, 40.0, 60.0, 100.0, 200.0, 400.0, 800.0, 1600.0)
VALIDATION = 5000


class Linear(NamedTuple):
  """The result of a linear control.

  Attributes:
    rate: the rate of `RATES` with the highest validation accuracy.
    validation: percent of the validation images, for each of `RATES`.
    test: percent of the test images, at `rate`.
  """

  rate: float
  validation: list[float]
  test: float


class Control(NamedTuple):
  """A control: the network it belongs to, its depth, and how many images it sees.

  Attributes:
    name: its case in the results file.
    dataset: name in `sparsejax.training.data`.
    depth: the layers of the untrained trunk; 0 for pixels.
    steps: number of steps.
    batch: images per step.
    seeds: number of seeds.
    reduced: whether images are reduced; see `cases.load`.
  """

  name: str
  dataset: str = "mnist"
  depth: int = 0
  steps: int = 300
  batch: int = 16
  seeds: int = 3
  reduced: bool = False


CONTROLS = (
  Control("mnist/linear"),
  Control("mnist/linear/batch=128", steps=400, batch=128),
  Control("mnist/linear/batch=128/steps=2000", steps=2000, batch=128),
  *[Control(f"mnist/depth={d}/readout_only", depth=d) for d in (100, 1000, 10_000)],
  Control("mnist16/linear", steps=2000, batch=64, reduced=True),
  Control("mnist16/linear/steps=3000", steps=3000, batch=64, reduced=True),
  *[
    Control(
      f"mnist16/depth={d}/readout_only", depth=d, steps=2000, batch=64, reduced=True
    )
    for d in (1000, 10_000)
  ],
  Control("cifar10/linear/batch=128", "cifar10", steps=1200, batch=128),
  Control("cifar16/linear", "cifar10", steps=4000, batch=64, reduced=True),
)


def make_features(control: Control, seed: int, norm, example) -> Callable:
  """Returns a function from images to the inputs of the linear classifier."""
  if not control.depth:
    return lambda images: np.asarray(norm(images)).reshape(len(images), -1)
  # A read-out by the identity returns the trunk's normalized outputs.
  model = make_model(Case(control.name, control.depth, control.dataset))
  params = jax.jit(model.init)(jax.random.key(seed), norm(example))["params"]
  width = params["readout"]["kernel"].shape[0]
  readout = {"kernel": jnp.eye(width), "bias": jnp.zeros(width)}
  params = {"params": {**params, "readout": readout}}
  wide = model.clone(num_classes=width)
  run = jax.jit(lambda images: wide.apply(params, norm(images)))
  chunk = 50 if jax.default_backend() == "cpu" else 400

  def features(images):
    # Pad the last chunk, so that one shape is compiled.
    padded = np.concatenate([images, images[: -len(images) % chunk]])
    parts = [run(padded[i : i + chunk]) for i in range(0, len(padded), chunk)]
    return np.concatenate(parts)[: len(images)]

  return features


def train(
  features: Callable[[np.ndarray], np.ndarray],
  train_split: Any,
  test_split: Any,
  order: np.ndarray,
  steps: int,
  batch: int,
) -> Linear:
  """Trains a linear softmax classifier by SGD at each rate, and tests the best one.

  Args:
    features: maps images (n, height, width, channels) to float32 (n, width).
    train_split: training images and labels.
    test_split: test images and labels.
    order: (at least steps * batch,) indices of the training images, beginning with a
      permutation of all of them, whose last `VALIDATION` are the validation images.
    steps: the number of steps.
    batch: images per step.

  Returns:
    A `Linear`.

  Raises:
    ValueError: the run would train on the validation images.
  """
  size = len(train_split.labels)
  used, held = order[: steps * batch], order[size - VALIDATION : size]
  if steps * batch > size - VALIDATION:
    # More than one pass: leave the validation images out of each.
    used = np.tile(order[: size - VALIDATION], -(-steps * batch // size) + 1)
    used = used[: steps * batch]
  if len(used) < steps * batch or np.isin(held, used).any():
    raise ValueError(f"order must leave {VALIDATION} images out, got {len(order)}.")
  unique, inverse = np.unique(used, return_inverse=True)
  x, labels = features(train_split.images[unique]), train_split.labels[unique]
  batches = inverse.reshape(steps, batch)
  width = x.shape[1]

  def loss(weights, rows):
    logits = x[rows] @ weights[0] + weights[1][None]
    logs = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(logs, labels[rows][:, None], 1))

  @jax.jit
  def fit(rate):
    def step(weights, inputs):
      count, rows = inputs
      rise = jnp.minimum((count + 1) / WARM_UP, 1)
      now = rate / width * rise * jnp.maximum(1 - count / steps, 0)
      grads = jax.grad(loss)(weights, rows)
      return jax.tree.map(lambda w, g: w - now * g, weights, grads), None

    zeros = jnp.zeros((width, 10)), jnp.zeros(10)
    counts = jnp.arange(steps, dtype=jnp.float32)
    return jax.lax.scan(step, zeros, (counts, jnp.asarray(batches)))[0]

  def percent(weights, inputs, wanted):
    kernel, bias = (np.asarray(w) for w in weights)
    return 100 * float(np.mean((inputs @ kernel + bias[None]).argmax(1) == wanted))

  x_held = features(train_split.images[held])
  x, labels = jnp.asarray(x), jnp.asarray(labels)
  fitted = [fit(jnp.float32(rate)) for rate in RATES]
  found = [percent(w, x_held, train_split.labels[held]) for w in fitted]
  best = int(np.argmax(found))
  test = percent(fitted[best], features(test_split.images), test_split.labels)
  return Linear(RATES[best], found, test)
