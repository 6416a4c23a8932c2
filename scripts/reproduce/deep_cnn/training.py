"""Resumable training of the deep CNNs, several runs of one depth in one program.

Several runs of one depth can be vectorized (`jax.vmap`): a layer of one network is far
too small for an accelerator, where twelve networks take hardly longer than one.
"""

import json
import math
import pathlib
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from scripts.reproduce.deep_cnn.cases import (
  FIXED,
  Case,
  common,
  load,
  make_model,
  make_tx,
  spectrum,
  start,
)
from sparsejax.core import write_archive
from sparsejax.training import environment, json_text, listen_for_signals

# Seconds between the states from which a stopped run resumes.
SAVE_SECONDS = 120


def train(members, data_dir: str, folder: pathlib.Path) -> list[dict]:
  """Trains or resumes (case, seed) pairs in one vectorized run; records are JSON files.

  Finished pairs are left out. The pairs must share depth, images, batch size, number
  of steps and activation statistics, and their masks must be fixed.
  """
  members = [m for m in members if not record_path(folder, *m).exists()]
  if not members:
    return []
  cases, seeds = zip(*members, strict=True)
  case = common(cases)
  splits, mean, scale = load(case.dataset, data_dir, case.reduced)
  model = make_model(case)
  norm = lambda images: (images.astype(jnp.float32) - mean[None]) * scale
  images, labels = splits.train.images, splits.train.labels
  orders = [image_order(seed, len(labels), case) for seed in seeds]

  def batch(count):
    rows = [order[count * case.batch :][: case.batch] for order in orders]
    return images[np.stack(rows)], labels[np.stack(rows)]

  def loss_fn(params, batch):
    logits = jnp.asarray(model.apply(params, norm(batch[0])))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
    return jnp.mean(losses), jnp.sum(jnp.argmax(logits, 1) == batch[1])

  # Initialize every member: parameters, learning rates and masks, stacked over members.
  started = [
    start(one, seed, loss_fn, norm(jnp.asarray(images[:1])), images, labels, order)
    for one, seed, order in zip(cases, seeds, orders, strict=True)
  ]
  params, rates, masks = (_stack(parts) for parts in zip(*started, strict=True))
  # The optimizer takes the members' rates as an argument. Fixed masks replace those
  # that it draws, and the parameters are masked from the first step.
  tx = partial(make_tx, case, seed=seeds[0])
  state = jax.jit(_over(lambda p, r: tx(r).init(p)))(params, rates)
  if case.method in FIXED:
    empty = jax.tree.map(lambda m: None, params)
    empty["params"]["trunk"]["kernel"] = masks
    state = sj.with_masks(state, empty)
  if case.method:
    params = jax.jit(_over(sj.apply_masks))(params, sj.masks(state))
  # Start a record per member.
  records = []
  for i in range(len(cases)):
    rate = float(_pick(rates, i)["params"]["trunk"]["kernel"])
    records.append({"rate": rate, "loss": [], "accuracy": [], "gradients": {}})
    records[i] |= {"before": spectrum(seeds[i], model, _pick(params, i))}
    records[i] |= {"test_curve": {}, "seconds": 0.0}
    records[i] |= {"device": jax.devices()[0].device_kind, "together": len(cases)}
    records[i] |= {"jax": jax.__version__}

  def step(params, state, batch, rates):
    (loss, correct), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
    updates, state = tx(rates).update(grads, state, params)
    kernel = grads["params"]["trunk"]["kernel"]
    norms = jnp.sqrt(jnp.sum(kernel[jnp.array([0, -1])] ** 2, (1, 2, 3, 4)))
    return optax.apply_updates(params, updates), state, loss, correct, norms

  step = jax.jit(_over(step), donate_argnums=(0, 1))
  evaluate = _evaluation(model, norm)
  # The file name contains the number of members, because a state of another number
  # would not fit.
  name = f".{len(cases)}.npz"
  partial_path = record_path(folder, cases[0], seeds[0]).with_suffix(name)
  partial_path.parent.mkdir(parents=True, exist_ok=True)
  if partial_path.exists():
    params, state, records = _restore(partial_path, params, state)
  # The clock resumes with the time of the record.
  begun = time.monotonic() - records[0]["seconds"]
  every, saved = max(case.steps // 12, 1), time.monotonic()
  with listen_for_signals() as stop:
    for count in range(len(records[0]["loss"]), case.steps):
      params, state, *values = step(params, state, batch(count), rates)
      loss, correct, norms = (np.asarray(x) for x in values)
      for i, record in enumerate(records):
        record["loss"].append(float(loss[i]))
        record["accuracy"].append(float(correct[i]) / case.batch)
        if count in (0, case.steps // 2, case.steps - 1):
          record["gradients"][str(count)] = [float(n) for n in norms[i]]
      report = (count + 1) % every == 0
      seconds = time.monotonic() - begun
      records = [record | {"seconds": seconds} for record in records]
      if report and (count + 1) % (2 * every) == 0 and any(c.curve for c in cases):
        for record, value in zip(
          records, evaluate(params, splits.test, 400), strict=True
        ):
          record["test_curve"][str(count + 1)] = value
        # The time for evaluation does not count.
        begun = time.monotonic() - seconds
      if stop or time.monotonic() - saved > SAVE_SECONDS:
        _save(partial_path, params, state, records)
        saved = time.monotonic()
      if report:
        print(_line(cases, seeds, records, count + 1, every), flush=True)
      if stop:
        raise KeyboardInterrupt
  # Evaluate the trained networks and write their records.
  accuracies = evaluate(params, splits.test, case.test)
  for i, (one, seed) in enumerate(members):
    records[i]["test_accuracy"] = accuracies[i]
    records[i]["after"] = spectrum(seed, model, _pick(params, i))
    path = record_path(folder, one, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json_text({**records[i], "run": environment()}, indent=1))
    print(f"{one.name} seed {seed}: test {accuracies[i]:.4f}", flush=True)
  partial_path.unlink(missing_ok=True)
  return records


def record_path(folder: pathlib.Path, case: Case, seed: int) -> pathlib.Path:
  return folder / f"{case.name}/seed={seed}.json"


def image_order(seed: int, size: int, case: Case) -> np.ndarray:
  """Returns the order of the examples, as permutations of all images."""
  rng, need = np.random.default_rng(seed), case.steps * case.batch
  times = max(math.ceil(need / size), 2)
  return np.concatenate([rng.permutation(size) for _ in range(times)])


def _over(f):
  """Maps `f` over runs; a single run avoids `vmap`, whose products are slower."""

  def over(*args):
    if jax.tree.leaves(args)[0].shape[0] > 1:
      return jax.vmap(f)(*args)
    return jax.tree.map(lambda x: x[None], f(*_pick(args, 0)))

  return over


def _stack(trees):
  return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)


def _pick(tree, i):
  return jax.tree.map(lambda x: x[i], tree)


def _line(cases, seeds, records, count, every) -> str:
  loss = [f"{np.mean(r['loss'][-every:]):.3f}" for r in records]
  values = [f"{np.mean(r['accuracy'][-every:]):.3f}" for r in records]
  names = ", ".join(dict.fromkeys(c.name for c in cases))
  return (
    f"{names} seed {' '.join(map(str, seeds))}: step {count} of {cases[0].steps}, "
    f"loss {' '.join(loss)}, accuracy {' '.join(values)}, {records[0]['seconds']:.0f} s"
  )


def _evaluation(model, norm):
  @jax.jit
  def correct(params, images, labels):
    def one(params):
      logits = jnp.asarray(model.apply(params, norm(images)))
      return jnp.sum(jnp.argmax(logits, 1) == labels)

    return _over(one)(params)

  # Few images fit into a CPU's cache; on an accelerator launching layers dominates.
  n = 50 if jax.default_backend() == "cpu" else 400

  def evaluate(params, split, count) -> list[float]:
    count = count or len(split.labels)
    starts = range(0, count - count % n, n)
    right = [
      np.asarray(correct(params, split.images[i : i + n], split.labels[i : i + n]))
      for i in starts
    ]
    return (np.sum(right, 0) / (len(starts) * n)).tolist()

  return evaluate


def _save(path, params, state, records):
  leaves = jax.tree.leaves((params, state))
  arrays: dict[str, Any] = {str(i): np.asarray(x) for i, x in enumerate(leaves)}
  write_archive(path, {"records": np.array(json.dumps(records)), **arrays})


def _restore(path, params, state):
  treedef = jax.tree.structure((params, state))
  with np.load(path) as file:
    records = json.loads(str(file["records"]))
    leaves = [jnp.asarray(file[str(i)]) for i in range(treedef.num_leaves)]
  return (*treedef.unflatten(leaves), records)
