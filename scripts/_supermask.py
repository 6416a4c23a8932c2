"""What scripts/supermask.py measures of networks inside random networks."""

import functools as ft
import os
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from sparsejax import lottery, models, training
from sparsejax.lottery.criteria import criterion
from sparsejax.training import data, functions, run, step
from sparsejax.training import supermask as variants

DRAWS = 10  # of a Bernoulli supermask, as in the paper's program
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02)
ZHOU = "Zhou et al. (2019), as quoted in its abstract"


def measure(config, result: training.Result, workdir: pathlib.Path) -> dict:
  """Metrics of a finished run; raises if a weight changed or a file does not match."""
  state = result.state
  prepared = run.prepare({**config.to_dict(), "num_seeds": 1})
  start = prepared.program.init(prepared.seeds)
  params, masks, model_state = (
    jax.tree.map(lambda x: x[0] if state.key.ndim else x, tree)
    for tree in (state.params, sj.masks(state.opt_state), state.model_state)
  )
  if lottery.weights_hash(params) != lottery.weights_hash(start.params):
    raise RuntimeError("a weight changed while its mask was trained")
  file = workdir / "supermask.npz"
  lottery.save_supermask(file, masks, config.seed, params, model_state)
  loaded = lottery.load_supermask(
    file,
    lambda seed: prepared.program.init(np.array([seed], np.int32)).params,
    model_state,
  )
  if not jax.tree.all(
    jax.tree.map(lambda a, b: bool((a == b).all()), loaded.masks, masks)
  ):
    raise RuntimeError("the masks in the file are not those of the network")
  dense = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  accuracy = 100 * result.test_accuracy
  found = {}
  if config.method == "bernoulli_supermask":
    live = [np.mean(m) * m.size for m in jax.tree.leaves(masks)]
    size = sum(m.size for m in jax.tree.leaves(masks))
    found["live_percent"] = float(100 * sum(live) / size)
    accuracy = over_draws(prepared, state)
  return {
    "test_accuracy_percent": np.asarray(accuracy).tolist(),
    **found,
    "file_bytes_ratio": os.path.getsize(file) / dense,
  }


def over_draws(prepared: run.Run, state: step.TrainState) -> np.ndarray:
  """Percent for each seed: the mean accuracy over draws of its masks."""
  split = data.pad(prepared.dataset.test, step.evaluation_batch(10_000))
  members = len(state.key) if state.key.ndim else 1
  means = []
  for one in (_member(state, i) for i in range(members)):
    found = []
    for draw in range(DRAWS):
      masks = lottery.bernoulli_masks(one.opt_state.scores, jax.random.key(draw))
      drawn = one._replace(opt_state=sj.with_masks(one.opt_state, masks))
      found.append(float(prepared.program.evaluate(drawn, split).means()[1]))
    means.append(100 * np.mean(found))
  return np.array(means)


def _member(state: step.TrainState, index: int) -> step.TrainState:
  """One seed of a state that may stack several."""
  if not state.key.ndim:
    return state
  rest = state._replace(step=state.key)  # the step is shared, and not stacked
  return jax.tree.map(lambda x: x[index], rest)._replace(step=state.step)


def heuristics(seeds: int, epochs: int) -> list[dict]:
  """Arguments of rows: masks by magnitudes and signs, on weights never trained.

  The final weights are those of a dense LeNet-300-100 after a short training by Adam;
  the masks are put on its initial weights, or on constants of their signs.
  """
  config = training.default_config()
  config.update(dataset="mnist", model="lenet300", batch_size=128, num_seeds=seeds)
  config.update(optimizer="adam", learning_rate=1.2e-3, lr_schedule="constant")
  config.update(num_epochs=epochs, weight_decay=0.0, method="dense", density=1.0)
  config.model_kwargs = {"initialization": "glorot_normal"}
  prepared = run.prepare(dict(config))
  train, test = run.place(
    (
      prepared.dataset.train,
      data.pad(prepared.dataset.test, step.evaluation_batch(10_000)),
    )
  )
  state = run.start(prepared, train)
  initial = jax.tree.map(jnp.copy, state.params)  # the state is donated
  for epoch in range(epochs):
    stop = np.int32((epoch + 1) * prepared.steps_per_epoch)
    state, _ = prepared.program.run(state, train, prepared.program.order(state), stop)

  def accuracy(params):
    return (
      100 * prepared.program.evaluate(state._replace(params=params), test).means()[1]
    )

  everything = jax.tree.map(lambda m: jnp.ones_like(m[0]), sj.masks(state.opt_state))

  def masked(name, density, constant):
    def one(before, after, key):
      scores = criterion(name, before, after, everything, key)
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
      "values": np.asarray(accuracy(state.params)).tolist(),
      "note": f"MNIST, {epochs} epochs of Adam at 1.2e-3: the final weights of the"
      " heuristics",
    }
  ]
  for name in ("large_final_same_sign", "large_final", "large_init", "random"):
    for constant in (False, True):
      best = max(
        ((accuracy(masked(name, d, constant)), d) for d in DENSITIES),
        key=lambda pair: np.mean(pair[0]),
      )
      weights = "signed_constant" if constant else "initial"
      published = name == "large_final_same_sign" and not constant
      found.append(
        {
          "case": f"lenet300/heuristic/{name}/{weights}",
          "metric": "test_accuracy_percent",
          "values": np.asarray(best[0]).tolist(),
          "paper": 86.0 if published else None,
          "source": ZHOU if published else "",
          "note": f"best of kept = {', '.join(map(str, DENSITIES))}, at {best[1]};"
          " masks of a network trained from these weights, which are then not trained",
        }
      )
      print(f"  {found[-1]}", flush=True)
  return found


def selection(rounds: int = 15) -> list[dict]:
  """Arguments of rows: what choosing the top k costs of a step, where it is due.

  Steps with a selection and steps without one are the same program, told apart by a
  flag, and are timed in turns.
  """
  found = []
  for name, shape, count in (("lenet300", (784,), 40), ("conv4", (28, 28, 1), 2)):
    config: Any = training.default_config()
    variants.use_variant(config, "0.5")
    model = functions.from_flax(models.create(name, **config.model_kwargs.to_dict()))
    tx = lottery.edge_popup(optax.sgd(0.1, momentum=0.9, nesterov=True), 0.5)
    images = jax.random.normal(jax.random.key(0), (128, *shape))
    labels = jnp.zeros(128, jnp.int32)

    @jax.jit
    def start(images, model=model, tx=tx):
      params, rest = model.init(jax.random.key(0), images)
      key = jax.random.key(0)
      return step.TrainState(jnp.int32(0), key, params, rest, tx.init(params))

    @ft.partial(jax.jit, donate_argnums=0)
    def run_steps(state, images, flag, model=model, tx=tx, labels=labels, count=count):
      def one(_, state):
        return step.train_step(
          state, images, labels, flag, apply=model.apply, tx=tx, effective=sj.effective
        )[0]

      return jax.lax.fori_loop(0, count, one, state)

    state, times = start(images), {True: [], False: []}
    for _ in range(rounds + 1):
      for flag in (True, False):
        before = time.perf_counter()
        state = jax.block_until_ready(run_steps(state, images, jnp.asarray(flag)))
        times[flag].append((time.perf_counter() - before) / count)
    # The first round compiles; the least is what other programs disturbed least.
    on, off = (min(times[flag][1:]) for flag in (True, False))
    note = (
      f"28 x 28 images in batches of 128, {rounds} rounds of {count} steps with and"
      f" without in turns, the least of each: {1e3 * on:.2f} and {1e3 * off:.2f} ms"
    )
    case = f"{name}{'_mnist' if name == 'conv4' else ''}/signed_constant/kept=0.5"
    values = {"selection_share_of_step": 1 - off / on, "step_milliseconds": 1e3 * on}
    found += [
      {"case": case, "metric": metric, "values": value, "note": note}
      for metric, value in values.items()
    ]
    print(f"  {found[-2:]}", flush=True)
  return found
