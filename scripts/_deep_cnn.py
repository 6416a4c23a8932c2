"""Training one case of scripts/deep_cnn.py: resumable, from a config to a record."""

import dataclasses
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from sparsejax import initializers, models
from sparsejax.analysis import isometry
from sparsejax.training import data, interrupt

TRUNK = "trunk/kernel"
EVALUATION_BATCH = 50


@dataclasses.dataclass(frozen=True)
class Case:
  """What is trained; `name` is the case of the results file.

  Attributes:
    name: a path.
    depth: layers.
    dataset: of `sparsejax.training.data`.
    kernel_init: see `VanillaCNN`.
    variances: sigma_w^2 and sigma_b^2.
    trained: see `VanillaCNN`.
    method: "" (dense), "support" (fixed, orthogonal), "random" (fixed), "isometric",
      "rigl".
    method_kwargs: of the method.
    density: of the trunk's kernels.
    eta: the first step's fall of the loss, on which the learning rate is calibrated.
    steps: of 16 images.
    seeds: how many are wanted.
    test: test images; 0 for all.
    curve: whether the accuracy over the steps goes into the results.
  """

  name: str
  depth: int
  dataset: str = "mnist"
  kernel_init: str = "delta_orthogonal"
  variances: tuple[float, float] = (1.0, 0.0)
  trained: str = "all"
  method: str = ""
  method_kwargs: tuple[tuple[str, Any], ...] = ()
  density: float = 1.0
  eta: float = 0.5
  steps: int = 300
  seeds: int = 1
  test: int = 0
  curve: bool = False


BATCH, WARM_UP = 16, 10
# Over the read-out's inputs, each of mean square 1, whose number they add up to.
READOUT_RATE = 3.0


def load(name: str, data_dir: str):
  """Images float32 with the mean image taken off and of mean square 1, and labels."""
  splits = data.load(name, data_dir, validation_fraction=0.0)
  mean = splits.train.images.mean(0, dtype=np.float64)
  square = sum(
    float(((part - mean) ** 2).sum())
    for part in np.array_split(splits.train.images, 20)
  )
  scale = (square / splits.train.images.size) ** -0.5
  return splits, mean.astype(np.float32), np.float32(scale)


def make_model(case: Case) -> models.VanillaCNN:
  return models.VanillaCNN(
    depth=case.depth,
    kernel_init=case.kernel_init,
    weight_variance=case.variances[0],
    bias_variance=case.variances[1],
    kernel_density=case.density,
    trained=case.trained,
  )


def make_tx(
  case: Case, rate: float, width: int, seed: int
) -> optax.GradientTransformation:
  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    rise = jnp.minimum((step + 1) / WARM_UP, 1)
    return rate * rise * jnp.maximum(1 - step / case.steps, 0)

  scales = {"trunk/bias": 1 / case.depth, "readout": READOUT_RATE / width / rate}
  inner = optax.chain(optax.sgd(schedule), models.scale_by_path(scales))
  sparse = {"density": case.density, "where": TRUNK, "stacked": TRUNK, "seed": seed}
  sparse |= dict(case.method_kwargs)
  if case.method in ("support", "random"):
    return sj.static_sparse(inner, update_every=None, **sparse)
  return getattr(sj, case.method)(inner, **sparse) if case.method else inner


def spectrum(case: Case, model, params) -> dict[str, float]:
  """Of the end-to-end Jacobian at a random input of 4 x 4 pixels."""
  x = jax.random.normal(jax.random.key(7), (4, 4, model.channels)) * model.q0**0.5
  found = isometry.end_to_end(model.layer, params["params"]["trunk"], x)
  logs = np.nan_to_num(found.log10, nan=999.0, neginf=-9999.0, posinf=9999.0)
  return {
    "log10_largest": float(logs[0]),
    "log10_median": float(np.median(logs)),
    "log10_smallest": float(logs[-1]),
  }


def train(case: Case, seed: int, data_dir: str, folder: pathlib.Path) -> dict:
  """Trains one seed of a case, or goes on doing so; the record is kept as JSON."""
  path = folder / f"{case.name}/seed={seed}.json"
  if path.exists():
    return json.loads(path.read_text())
  path.parent.mkdir(parents=True, exist_ok=True)
  splits, mean, scale = load(case.dataset, data_dir)
  model = make_model(case)
  norm = lambda images: (images.astype(jnp.float32) - mean[None]) * scale
  images, labels = splits.train.images, splits.train.labels
  rng = np.random.default_rng(seed)
  order = np.concatenate([rng.permutation(len(labels)) for _ in range(2)])

  def batch(count):
    start = (count * BATCH) % (len(order) - BATCH)
    rows = order[start : start + BATCH]
    return images[rows], labels[rows]

  def loss_fn(params, batch):
    logits = jnp.asarray(model.apply(params, norm(batch[0])))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
    return jnp.mean(losses), jnp.sum(jnp.argmax(logits, 1) == batch[1])

  params = jax.jit(model.init)(jax.random.key(seed), norm(jnp.asarray(images[:1])))
  masks, width = None, params["params"]["readout"]["kernel"].shape[0]
  kernel = params["params"]["trunk"]["kernel"]
  if case.method == "support":
    masks = initializers.orthogonal_support(kernel, stacked=True)
  elif case.method:
    # The method's own first masks; they depend on its seed and density alone.
    masks = sj.masks(jax.jit(make_tx(case, 1.0, width, seed).init)(params))
    masks = masks["params"]["trunk"]["kernel"]
  rate = _rate(case, loss_fn, params, masks, [batch(i) for i in range(4)])
  tx = make_tx(case, rate, width, seed)
  state = jax.jit(tx.init)(params)
  if case.method == "support":
    empty = jax.tree.map(lambda m: None, params)
    empty["params"]["trunk"]["kernel"] = masks
    state = sj.with_masks(state, empty)
  if case.method:
    params = jax.jit(sj.apply_masks)(params, sj.masks(state))
  record = {"rate": rate, "before": spectrum(case, model, params), "loss": []}
  record |= {"accuracy": [], "gradients": {}, "test_curve": {}, "seconds": 0.0}

  def step(params, state, batch):
    (loss, correct), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
    updates, state = tx.update(grads, state, params)
    kernel = grads["params"]["trunk"]["kernel"]
    norms = jnp.sqrt(jnp.sum(kernel[jnp.array([0, -1])] ** 2, (1, 2, 3, 4)))
    return optax.apply_updates(params, updates), state, loss, correct, norms

  step = jax.jit(step, donate_argnums=(0, 1))
  evaluate = _evaluation(model, norm)
  partial = path.with_suffix(".npz")
  if partial.exists():
    params, state, record = _restore(partial, params, state)
  started = time.monotonic() - record["seconds"]
  every = max(case.steps // 12, 1)
  with interrupt.listen() as stop:
    for count in range(len(record["loss"]), case.steps):
      params, state, loss, correct, norms = step(params, state, batch(count))
      record["loss"].append(float(loss))
      record["accuracy"].append(float(correct) / BATCH)
      if count in (0, case.steps // 2, case.steps - 1):
        record["gradients"][str(count)] = [float(n) for n in norms]
      if stop or (count + 1) % every == 0:
        record["seconds"] = time.monotonic() - started
        if case.curve and (count + 1) % (2 * every) == 0:
          some = evaluate(params, splits.test, 400)
          record["test_curve"][str(count + 1)] = some
          # Looking does not count.
          started = time.monotonic() - record["seconds"]
        _save(partial, params, state, record)
        print(
          f"{case.name} seed {seed}: step {count + 1} of {case.steps}, loss "
          f"{np.mean(record['loss'][-every:]):.3f}, accuracy "
          f"{np.mean(record['accuracy'][-every:]):.3f}, {record['seconds']:.0f} s",
          flush=True,
        )
      if stop:
        raise KeyboardInterrupt
  record["seconds"] = time.monotonic() - started
  record["test_accuracy"] = evaluate(params, splits.test, case.test)
  record["after"] = spectrum(case, model, params)
  text = json.dumps(record, indent=1)
  path.write_text(text)
  partial.unlink(missing_ok=True)
  print(f"{case.name} seed {seed}: test {record['test_accuracy']:.4f}", flush=True)
  return record


def _rate(case, loss_fn, params, masks, batches) -> float:
  """Calibrated on the trunk; where no gradient comes through, what dense nets take."""
  scales = {"trunk/bias": 1 / case.depth, "readout": 0.0}
  dense = case.eta / (0.76 * case.depth)

  # Masks are an argument of the loss: captured they would be a constant of 92 MB.
  def loss(params, batch):
    params = params if masks is None else _masked(params, batch[2])
    return loss_fn(params, batch[:2])[0]

  if case.trained == "readout":
    return dense
  if masks is not None:
    batches = [(*batch, masks) for batch in batches]
  try:
    rate = models.calibrate_learning_rate(loss, params, batches, case.eta, scales)
  except ValueError as e:
    print(f"{case.name}: {e}", flush=True)
    return dense
  # A net that hardly passes a gradient would calibrate to anything.
  return float(np.clip(rate, dense / 10, 20 * dense))


def _masked(params, mask):
  trunk = params["params"]["trunk"]
  trunk = {**trunk, "kernel": jnp.where(mask, trunk["kernel"], 0)}
  return {"params": {**params["params"], "trunk": trunk}}


def _evaluation(model, norm):
  @jax.jit
  def correct(params, images, labels):
    logits = jnp.asarray(model.apply(params, norm(images)))
    return jnp.sum(jnp.argmax(logits, 1) == labels)

  def evaluate(params, split, count):
    count = count or len(split.labels)
    n = EVALUATION_BATCH
    starts = range(0, count - count % n, n)
    right = sum(
      int(correct(params, split.images[i : i + n], split.labels[i : i + n]))
      for i in starts
    )
    return right / (len(starts) * n)

  return evaluate


def _save(path, params, state, record):
  leaves = jax.tree.leaves((params, state))
  arrays: dict[str, Any] = {str(i): np.asarray(x) for i, x in enumerate(leaves)}
  temporary = path.with_name("partial.tmp.npz")
  np.savez(temporary, record=np.array(json.dumps(record)), **arrays)
  temporary.replace(path)


def _restore(path, params, state):
  treedef = jax.tree.structure((params, state))
  with np.load(path) as file:
    record = json.loads(str(file["record"]))
    leaves = [jnp.asarray(file[str(i)]) for i in range(treedef.num_leaves)]
  return (*treedef.unflatten(leaves), record)
