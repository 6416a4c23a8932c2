"""Times a population of LeNet-300-100 tickets, vectorized against sequential.

Tickets have 21 % of the weights and train by Adam in batches of 60. Rounds alternate
between both ways, and the fastest round of each counts. The members' final weights are
compared too.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from scripts.benchmarks import timing
from sparsejax import lottery, models
from sparsejax.experiments import results
from sparsejax.training import cross_entropy

MEMBERS = (2, 4, 8, 16)
# Steps of a round, rounds.
FULL, QUICK = (100, 6), (2, 1)


def cases(quick: bool) -> timing.Cases:
  """Returns one case per population size."""
  return {
    f"population/lenet300/members={n}": functools.partial(rows, n, quick)
    for n in (MEMBERS[:1] if quick else MEMBERS)
  }


def setup(members: int):
  """Returns loss, optimizer, tickets and data."""
  model = models.create("lenet300", initialization="glorot_normal")
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.random((6000, 28, 28, 1), np.float32))
  labels = jnp.asarray(rng.integers(10, size=6000, dtype=np.int32))
  tx = sj.sparsify(
    optax.adam(1.2e-3), sj.chain(), None, update_every=None, mask_gradients=True
  )

  def loss(params, state, batch, key):
    logits: Any = model.apply({"params": params}, batch[0])
    return cross_entropy(logits, batch[1])[0], state

  def one(key):
    params = model.init(key, images[:1])["params"]
    masks = lottery.prune(params, lottery.dense_masks(params), 0.79)
    return params, masks

  keys = jax.random.split(jax.random.key(0), members)
  params, masks = jax.jit(jax.vmap(one))(keys)
  return loss, tx, lottery.stack_members(tx, keys, params, masks), (images, labels)


def rows(members: int, quick: bool) -> list[dict]:
  """Returns steps per second, summed over members, for both ways."""
  steps, rounds = QUICK if quick else FULL
  loss, tx, tickets, data = setup(members)

  def run(together):
    done = lottery.train_population(
      loss, tx, tickets, data, batch_size=60, steps=steps, together=together
    )
    return done.members.params

  both = [jax.tree.leaves(run(together)) for together in (1, members)]  # compiles
  apart = max(float(jnp.abs(a - b).max()) for a, b in zip(*both, strict=True))
  ways = {"one_by_one": lambda: run(1), "vmap": lambda: run(members)}
  found = timing.interleaved(ways, rounds, warm_up=False)
  rate = {name: members * steps / s.min() for name, s in found.items()}
  case = f"population/lenet300/members={members}"
  note = f"Adam, batch 60, {steps} steps a round, fastest of {rounds} rounds in turns"
  ratio = rate["vmap"] / rate["one_by_one"]
  difference = f"largest |w - w'| to tickets trained alone, after {steps} steps"
  return [
    results.row(f"{case}/vmap", "steps_per_second", rate["vmap"], note=note),
    results.row(
      f"{case}/one_by_one", "steps_per_second", rate["one_by_one"], note=note
    ),
    results.row(case, "throughput_ratio", ratio, note=note),
    results.row(case, "weight_difference_max", apart, note=difference),
  ]
