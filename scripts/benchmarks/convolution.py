r"""Times a training epoch of the LeNets on this machine, by how they are computed.

  python scripts/benchmarks/convolution.py --out=results/benchmarks_convolution.json

An epoch is 540 steps of 100 images, SGD with Nesterov momentum. It is measured by
`--steps` of its steps, compiled before, in `--rounds` rounds that take all cases in
turn, so that other load falls on all alike. Cases:

  slices, lax   `sparsejax.models.conv2d` and `max_pool` by that lowering
  dense         LeNet-300-100, which has no convolution
  scan, loop    all steps in one `lax.scan`, or a Python loop of jitted steps
  torch         the same model in PyTorch, if it is installed; as many threads as cores

About three minutes on two cores, most of it in `lax/scan`.
"""

import os
import pathlib
import statistics
import time
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from sparsejax import models
from sparsejax.training import results

try:
  import torch  # pyright: ignore[reportMissingImports]
except ImportError:
  torch = None

BATCH, STEPS_PER_EPOCH, RATE, MOMENTUM = 100, 540, 0.05, 0.9

_OUT = flags.DEFINE_string("out", None, "The JSON file to write; none by default.")
_STEPS = flags.DEFINE_integer("steps", 27, "Steps a measurement.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Measurements a case.", lower_bound=1)


def jax_case(model: nn.Module, images, labels, scan: bool) -> Callable[[], None]:
  """A function that trains for `len(images)` steps."""
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
  """The same in PyTorch."""
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


def cases(steps: int) -> dict[str, Callable[[], None]]:
  """A function for each case, in the order of the table."""
  rng = np.random.default_rng(0)
  images = rng.random((steps, BATCH, 28, 28, 1), dtype=np.float32)
  labels = rng.integers(0, 10, (steps, BATCH)).astype(np.int32)
  made = {}
  for lowering in ("slices", "lax"):
    model = models.LeNet5(lowering=lowering)
    for scan in (True, False):
      kind = "scan" if scan else "loop"
      made[f"lenet5/{lowering}/{kind}"] = jax_case(model, images, labels, scan)
  if torch is not None:
    made["lenet5/torch"] = torch_case("lenet5", images, labels)
  for scan in (True, False):
    kind = "scan" if scan else "loop"
    made[f"lenet300/dense/{kind}"] = jax_case(models.LeNet300(), images, labels, scan)
  if torch is not None:
    made["lenet300/torch"] = torch_case("lenet300", images, labels)
  return made


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"no arguments but flags; got {argv[1:]}.")
  runs = cases(_STEPS.value)
  for run in runs.values():
    run()
  seconds = {name: [] for name in runs}
  for _ in range(_ROUNDS.value):
    for name, run in runs.items():
      start = time.perf_counter()
      run()
      scale = STEPS_PER_EPOCH / _STEPS.value
      seconds[name].append(scale * (time.perf_counter() - start))

  rows = []
  note = f"epoch of {STEPS_PER_EPOCH} steps of {BATCH} images"
  print(f"{'case':24}{'median s':>10}{'min s':>10}{'to torch':>10}{'to lax':>10}")
  for name, values in seconds.items():
    rows.append(results.row(name, "seconds_per_epoch", values, note=note))
    line = f"{name:24}{statistics.median(values):10.2f}{min(values):10.2f}"
    for other in ("torch", "lax/loop"):
      other = f"{name.split('/')[0]}/{other}"
      if other not in seconds:
        line += f"{'':10}"
        continue
      # Of the same round, so that the machine's load cancels.
      ratios = [a / b for a, b in zip(values, seconds[other], strict=True)]
      line += f"{statistics.median(ratios):10.2f}"
      if other != name:
        metric = f"time_ratio_to_{other.split('/', 1)[1].replace('/', '_')}"
        rows.append(results.row(name, metric, ratios, note="rounds side by side"))
    print(line, flush=True)
  if _OUT.value:
    results.write_results(_OUT.value, pathlib.Path(_OUT.value).stem, rows)


if __name__ == "__main__":
  app.run(main)
