r"""Times a population of LeNet-300-100 tickets under vmap against one after another.

  python scripts/benchmarks/population.py --out=results/benchmarks_population.json

Eight tickets at 21 % of the weights, Adam, batches of 60; rounds of either way are
taken in turns and the fastest of each counts. A minute on one quiet CPU core. The
members' weights after some steps are compared too.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import sparsejax as sj
from sparsejax import lottery, models
from sparsejax.training import results, step

_OUT = flags.DEFINE_string("out", "results/benchmarks_population.json", "The table.")
_MEMBERS = flags.DEFINE_integer("members", 8, "Tickets.", 2)
_STEPS = flags.DEFINE_integer("steps", 100, "Steps of a round.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 8, "Rounds of either way.", 1)


def setup(members: int):
  model = models.create("lenet300", initialization="glorot_normal")
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.random((6000, 28, 28, 1), np.float32))
  labels = jnp.asarray(rng.integers(10, size=6000, dtype=np.int32))
  tx = sj.sparsify(
    optax.adam(1.2e-3), sj.chain(), None, update_every=None, mask_gradients=True
  )

  def loss(params, state, batch, key):
    logits: Any = model.apply({"params": params}, batch[0])
    return step.cross_entropy(logits, batch[1])[0], state

  def one(key):
    params = model.init(key, images[:1])["params"]
    masks = lottery.prune(params, lottery.dense_masks(params), 0.79)
    return params, masks

  keys = jax.random.split(jax.random.key(0), members)
  params, masks = jax.jit(jax.vmap(one))(keys)
  start = lottery.stack_members(tx, keys, params, masks)
  return loss, tx, start, (images, labels)


def main(argv: list[str]) -> None:
  del argv
  n, steps = _MEMBERS.value, _STEPS.value
  loss, tx, start, data = setup(n)

  def run(together):
    began = time.perf_counter()
    done = lottery.train_population(
      loss, tx, start, data, batch_size=60, steps=steps, together=together
    )
    jax.block_until_ready(done.members.params)
    return time.perf_counter() - began, done

  alone, many = run(1)[1], run(n)[1]  # compiles
  both = [jax.tree.leaves(p.members.params) for p in (alone, many)]
  apart = max(float(jnp.abs(a - b).max()) for a, b in zip(*both, strict=True))
  seconds = {1: [], n: []}
  for _ in range(_ROUNDS.value):
    for together, found in seconds.items():
      found.append(run(together)[0])
  rate = {k: n * steps / min(v) for k, v in seconds.items()}
  case = f"lenet300/population={n}"
  note = (
    f"Adam, batch 60, {steps} steps a round, fastest of {_ROUNDS.value} rounds in"
    f" turns; {jax.default_backend()}"
  )
  rows = [
    results.row(f"{case}/vmap", "steps_per_second", rate[n], note=note),
    results.row(f"{case}/one_by_one", "steps_per_second", rate[1], note=note),
    results.row(case, "throughput_ratio", rate[n] / rate[1], note=note),
    results.row(
      case,
      "weight_difference_max",
      apart,
      note=f"largest |w - w'| to tickets trained alone, after {steps} steps",
    ),
  ]
  results.write_results(_OUT.value, "benchmarks_population", rows)
  for row in rows:
    print(f"{row['case']}  {row['metric']}  {row['mean']:.6g}")


if __name__ == "__main__":
  app.run(main)
