"""Times a training epoch of the LeNets, by convolution lowering.

An epoch is 540 steps of 100 images, SGD with Nesterov momentum. It is extrapolated from
some of its steps, compiled before, in rounds that alternate between all ways:

  slices, lax   `sparsejax.models.conv2d` and `max_pool` by that lowering
  dense         LeNet-300-100, which has no convolution
  scan, loop    all steps in one `lax.scan`, or a Python loop of jitted steps
  torch         the same model in PyTorch, if it is installed; as many threads as cores
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from scripts.benchmarks import timing
from sparsejax import models
from sparsejax.experiments import results

try:
  import torch  # pyright: ignore[reportMissingImports]
except ImportError:
  torch = None

BATCH, STEPS_PER_EPOCH, RATE, MOMENTUM = 100, 540, 0.05, 0.9
# Steps a measurement, rounds. XLA's convolution in a scan takes ten seconds a round.
FULL, QUICK = (27, 3), (1, 1)


def jax_case(model: nn.Module, images, labels, scan: bool) -> Callable[[], None]:
  """Returns a function that trains for `len(images)` steps."""
  tx = optax.sgd(RATE, momentum=MOMENTUM, nesterov=True)
  params = jax.jit(model.init)(jax.random.key(0), images[0])
  images, labels = jnp.asarray(images), jnp.asarray(labels)

  def step(carry, batch):
    def loss(params):
      logits = jnp.asarray(model.apply(params, batch[0]))
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
      return jnp.mean(losses)

    params, state = carry
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return (optax.apply_updates(params, updates), state), None

  carry = params, tx.init(params)
  if scan:
    epoch = jax.jit(lambda carry, data: jax.lax.scan(step, carry, data)[0])
    return lambda: jax.block_until_ready(epoch(carry, (images, labels)))
  jitted = jax.jit(step)

  def loop():
    new = carry
    for batch in zip(images, labels, strict=True):
      new, _ = jitted(new, batch)
    jax.block_until_ready(new)

  return loop


def torch_case(name: str, images, labels) -> Callable[[], None]:
  """Returns a function that does the same in PyTorch."""
  assert torch is not None
  torch.set_num_threads(os.cpu_count() or 1)
  t = torch.nn
  if name == "lenet5":
    convs = [t.Conv2d(1, 20, 5), t.ReLU(), t.MaxPool2d(2)]
    convs += [t.Conv2d(20, 50, 5), t.ReLU(), t.MaxPool2d(2), t.Flatten()]
    model = t.Sequential(*convs, t.Linear(800, 500), t.ReLU(), t.Linear(500, 10))
  else:
    hidden = [t.Flatten(), t.Linear(784, 300), t.ReLU(), t.Linear(300, 100), t.ReLU()]
    model = t.Sequential(*hidden, t.Linear(100, 10))
  optimizer = torch.optim.SGD(
    model.parameters(), RATE, momentum=MOMENTUM, nesterov=True
  )
  images = torch.from_numpy(np.moveaxis(images, -1, 2).copy())
  labels = torch.from_numpy(labels.astype(np.int64))

  def loop():
    for x, y in zip(images, labels, strict=True):
      optimizer.zero_grad()
      t.functional.cross_entropy(model(x), y).backward()
      optimizer.step()

  return loop


def ways(model: str, steps: int) -> dict[str, Callable[[], None]]:
  """Returns a function per way of computing a model, in the order of the table."""
  rng = np.random.default_rng(0)
  images = rng.random((steps, BATCH, 28, 28, 1), dtype=np.float32)
  labels = rng.integers(0, 10, (steps, BATCH)).astype(np.int32)
  made = {}
  many = model == "lenet5"
  lowerings: tuple[Any, ...] = ("slices", "lax") if many else ("dense",)
  for lowering in lowerings:
    for kind in ("scan", "loop"):
      module = models.LeNet5(lowering=lowering) if many else models.LeNet300()
      case = jax_case(module, images, labels, kind == "scan")
      made[f"{model}/{lowering}/{kind}"] = case
  if torch is not None:
    made[f"{model}/torch"] = torch_case(model, images, labels)
  return made


def cases(quick: bool) -> timing.Cases:
  """Returns one case per model."""
  names = ("lenet300", "lenet5")
  return {f"convolution/{n}": functools.partial(rows, n, quick) for n in names}


def rows(model: str, quick: bool) -> list[dict]:
  """Returns seconds per epoch, and ratios to PyTorch and to a loop with XLA's."""
  steps, rounds = QUICK if quick else FULL
  scale = STEPS_PER_EPOCH / steps
  found = timing.interleaved(ways(model, steps), rounds)
  note = f"epoch of {STEPS_PER_EPOCH} steps of {BATCH} images, by {steps} of them"
  table = []
  for name, seconds in found.items():
    case = f"convolution/{name}"
    values = [scale * s for s in seconds]
    table.append(results.row(case, "seconds_per_epoch", values, note=note))
    for other in (f"{model}/torch", f"{model}/lax/loop"):
      if other in found and other != name:
        ratios = list(seconds / found[other])
        metric = f"time_ratio_to_{other.split('/', 1)[1].replace('/', '_')}"
        table.append(results.row(case, metric, ratios, note="rounds side by side"))
  return table
