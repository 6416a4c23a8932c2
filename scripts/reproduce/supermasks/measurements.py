"""Trainings and measurements of supermasks of random networks."""

import functools as ft
import json
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from sparsejax import lottery, models, supermasks, training
from sparsejax.training import (
  TrainState,
  complete_config,
  config_from_json,
  config_to_json,
  cross_entropy,
  data,
  evaluation_batch,
  forward_params_fn,
  from_flax,
  initial_state,
  make_optimizer,
  no_totals,
  place_arrays,
  prepare,
  total_steps,
  train_step,
  use_supermask_variant,
)

DRAWS = 10  # of a Bernoulli supermask, as in the paper's program
# Model, shape of an image, number of rounds, steps per round.
NETWORKS = (("lenet300", (784,), 15, 40), ("conv4", (28, 28, 1), 3, 2))
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02)
ZHOU = "Zhou et al. 2019, section 5: masks by final magnitude and sign"
# With the initial weights, and with constants of their signs.
PUBLISHED = {"initial": 80.0, "signed_constant": 86.0}


class Program(NamedTuple):
  """The objects that the cases of one network share, so that they compile once."""

  dataset: data.Dataset
  loss: Callable
  count_right: Callable
  tx: optax.GradientTransformationExtraArgs
  steps: int


def train(config, seed: int, file: pathlib.Path) -> dict[str, float]:
  """Trains the mask of one network, and writes the mask with the network's seed.

  Args:
    config: a config of configs/*_supermask.py.
    seed: seed of weights, scores and the order of the data.
    file: path of the file with the seed and the mask.

  Returns:
    Metrics. Raises RuntimeError if a weight changed, or if the file does not restore
    the network.
  """
  full = complete_config(config)
  # Cases with equal programs share their compilation; weights and budgets are
  # arguments.
  same = {"density": 0.5, "model_kwargs": {"use_bias": False, "normalize": True}}
  program = _program(json.dumps({**config_to_json(full), **same}))
  model = from_flax(models.create(full.model, **full.model_kwargs))
  shape = (1, *program.dataset.train.images.shape[1:])

  def init(seed):
    return jax.jit(model.init)(jax.random.key(seed), jnp.zeros(shape))

  # Initialize one member, and train it as a population of one.
  params, model_state = init(seed)
  before = supermasks.weights_hash(params)
  tx = make_optimizer(full, program.steps, seed)
  key = jax.random.key(seed)
  member = lottery.Member(key, params, model_state, jax.jit(tx.init)(params))
  train, validation, test = (split for split in program.dataset[:3])
  done = lottery.train_population(
    program.loss,
    program.tx,
    jax.tree.map(lambda x: x[None], member),
    (jnp.asarray(train.images), jnp.asarray(train.labels)),
    batch_size=full.batch_size,
    steps=program.steps,
    effective=forward_params_fn(full.method),
  ).members
  done = jax.tree.map(lambda x: x[0], done)
  # Check that only the mask was trained, write it, and restore the network from the
  # file.
  if supermasks.weights_hash(done.params) != before:
    raise RuntimeError("a weight changed while its mask was trained")
  masks = sj.masks(done.opt_state)
  supermasks.save_supermask(file, masks, seed, params, done.model_state)
  loaded = supermasks.load_supermask(file, lambda seed: init(seed)[0], done.model_state)
  exported = program.count_right(loaded.params, loaded.state, test)
  # Evaluate the restored network, or for Bernoulli masks the mean over draws of the
  # mask.
  if full.method != "bernoulli_supermask":
    seen = sj.effective(done.params, done.opt_state)
    few = data.take(test, np.arange(1000))
    both = (seen, done.model_state), (loaded.params, loaded.state)
    if len({program.count_right(*network, few) for network in both}) > 1:
      raise RuntimeError("the file does not restore the network that was trained")
    found = {
      "test_accuracy_percent": 100 * exported / len(test.labels),
      "validation_accuracy_percent": 100
      * program.count_right(loaded.params, loaded.state, validation)
      / len(validation.labels),
    }
  else:
    right = []
    for draw in range(DRAWS):
      masks = supermasks.bernoulli_masks(done.opt_state.scores, jax.random.key(draw))
      drawn = sj.with_masks(done.opt_state, masks)
      seen = supermasks.rescaled_effective(done.params, drawn)
      right.append(program.count_right(seen, done.model_state, test))
    found = {"test_accuracy_percent": 100 * float(np.mean(right)) / len(test.labels)}
  leaves = jax.tree.leaves(masks)
  live = sum(int(m.sum()) for m in leaves)
  bytes_of_weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  return {
    **found,
    "live_percent": 100 * live / sum(m.size for m in leaves),
    "file_bytes_ratio": os.path.getsize(file) / bytes_of_weights,
  }


@ft.lru_cache
def _program(text: str) -> Program:
  config = complete_config(config_from_json(json.loads(text)))
  dataset = data.load(config.dataset, config.data_dir, config.validation_fraction)
  model = from_flax(models.create(config.model, **config.model_kwargs))
  steps = total_steps(config, len(dataset.train.labels))
  tx = make_optimizer(config, steps, 0)

  def logits(params, model_state, images, key):
    images = dataset.normalize(images)
    return model.apply(params, model_state, images, key)

  def loss(params, model_state, batch, key):
    out, model_state = logits(params, model_state, batch[0], key)
    return cross_entropy(out, batch[1])[0], model_state

  @jax.jit
  def right(params, model_state, images, labels):
    out, _ = logits(params, model_state, images, None)
    return jnp.sum(out.argmax(-1) == labels)

  def count_right(params, model_state, split):
    parts = [slice(i, i + 500) for i in range(0, len(split.labels), 500)]
    return sum(
      int(right(params, model_state, split.images[p], split.labels[p])) for p in parts
    )

  return Program(dataset, loss, count_right, tx, steps)


def heuristics(seeds: int, epochs: int) -> list[dict]:
  """Returns arguments of rows: masks by magnitude and sign on untrained weights.

  The final weights are those of a dense LeNet-300-100 after a short training by Adam;
  the masks are applied to its initial weights, or to constants with their signs. Each
  criterion is tested at the density with the highest mean validation accuracy.
  """
  config = training.default_config()
  config.update(dataset="mnist", model="lenet300", batch_size=128, num_seeds=seeds)
  config.update(optimizer="adam", learning_rate=1.2e-3, lr_schedule="constant")
  config.update(num_epochs=epochs, weight_decay=0.0, method="dense", density=1.0)
  config.model_kwargs = {"initialization": "glorot_normal"}
  prepared = prepare(dict(config))
  splits = prepared.dataset
  padded = (
    data.pad(split, evaluation_batch(len(split.labels)))
    for split in (splits.validation, splits.test)
  )
  train, validation, test = place_arrays((splits.train, *padded))
  state = initial_state(prepared, train)
  # Train the dense networks of all seeds in one run.
  initial = jax.tree.map(jnp.copy, state.params)  # the state is donated
  for epoch in range(epochs):
    stop = np.int32((epoch + 1) * prepared.steps_per_epoch)
    order = prepared.program.order(state)
    zeros = no_totals(state.key.shape)
    state, _ = prepared.program.run(state, train, order, stop, zeros)

  def accuracy(params, split):
    found = prepared.program.evaluate(state._replace(params=params), split)
    return 100 * np.asarray(found.means()[1])

  everything = jax.tree.map(lambda m: jnp.ones_like(m[0]), sj.masks(state.opt_state))

  # Mask the initial weights by a criterion over initial and final weights.
  def masked(name, density, constant):
    def one(before, after, key):
      scores = lottery.criterion(name, before, after, everything, key)
      masks = sj.masks_from_scores(
        scores, density, where=lambda path, leaf: True, distribution=sj.uniform
      )
      if constant:
        before = jax.tree.map(lambda w: jnp.std(w) * jnp.sign(w), before)
      return sj.apply_masks(before, masks)

    keys = jax.random.split(jax.random.key(0), seeds)
    take: Any = lambda tree, i: jax.tree.map(lambda x: x[i], tree)
    members = [
      one(take(initial, i), take(state.params, i), keys[i]) for i in range(seeds)
    ]
    return jax.tree.map(lambda *x: jnp.stack(x), *members)

  found = [
    {
      "case": "lenet300/dense",
      "metric": "test_accuracy_percent",
      "values": accuracy(state.params, test).tolist(),
      "note": f"MNIST, {epochs} epochs of Adam at 1.2e-3: the final weights of the"
      " heuristics",
    }
  ]
  # Test every criterion at the density that is best on the validation images.
  for name in ("large_final_same_sign", "large_final", "large_init", "random"):
    for constant in (False, True):
      weights = "signed_constant" if constant else "initial"
      networks = {density: masked(name, density, constant) for density in DENSITIES}
      scores = {d: accuracy(net, validation).mean() for d, net in networks.items()}
      best = max(scores, key=lambda density: scores[density])
      published = name == "large_final_same_sign"
      found.append(
        {
          "case": f"lenet300/heuristic/{name}/{weights}",
          "metric": "test_accuracy_percent",
          "values": accuracy(networks[best], test).tolist(),
          "paper": PUBLISHED[weights] if published else None,
          "source": ZHOU if published else "",
          "note": f"kept = {best}, the best of {', '.join(map(str, DENSITIES))} on"
          " validation images; masks of a network trained from these weights, which are"
          " then not trained",
        }
      )
      print(f"  {found[-1]}", flush=True)
  return found


def selection(networks: Sequence[tuple] = NETWORKS) -> list[dict]:
  """Returns arguments of rows: the share of a step that top-k selection takes.

  Steps with and without a selection are the same program with a flag, timed in turns.
  """
  found = []
  for name, shape, rounds, count in networks:
    config: Any = training.default_config()
    use_supermask_variant(config, "0.5")
    model = from_flax(models.create(name, **config.model_kwargs.to_dict()))
    tx = supermasks.edge_popup(optax.sgd(0.1, momentum=0.9, nesterov=True), 0.5)
    images = jax.random.normal(jax.random.key(0), (128, *shape))
    labels = jnp.zeros(128, jnp.int32)

    # The step takes `due` as an argument, so that both kinds of step are one program.
    @jax.jit
    def start(images, model=model, tx=tx):
      params, rest = model.init(jax.random.key(0), images)
      key = jax.random.key(0)
      return TrainState(jnp.int32(0), key, params, rest, tx.init(params))

    @ft.partial(jax.jit, donate_argnums=0)
    def run_steps(state, images, due, model=model, tx=tx, labels=labels, count=count):
      def one(_, state):
        return train_step(
          state, images, labels, due, apply=model.apply, tx=tx, effective=sj.effective
        )[0]

      return jax.lax.fori_loop(0, count, one, state)

    state, times = start(images), {True: [], False: []}
    for _ in range(rounds + 1):
      for due in (True, False):
        before = time.perf_counter()
        state = jax.block_until_ready(run_steps(state, images, jnp.asarray(due)))
        times[due].append((time.perf_counter() - before) / count)
    # The first round compiles. The minimum is least disturbed by other programs.
    on, off = (min(times[due][1:]) for due in (True, False))
    found.append(
      {
        "case": f"{name}{'_mnist' * (name == 'conv4')}/signed_constant/kept=0.5",
        "metric": "selection_share_of_step",
        "values": 1 - off / on,
        "note": f"28 x 28 images in batches of 128, one thread, {rounds} rounds of"
        f" {count} steps with and without a selection in turns, the least of each:"
        f" {1e3 * on:.2f} and {1e3 * off:.2f} ms",
      }
    )
    print(f"  {found[-1]}", flush=True)
  return found
