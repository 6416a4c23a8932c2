"""Training cases of scripts/deep_cnn.py: resumable, from configs to records.

Several runs of one depth can go side by side (`jax.vmap`): a layer of one net is far
too small for an accelerator, where twelve nets take hardly longer than one.
"""

import dataclasses
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
from sparsejax import initializers, models
from sparsejax.analysis import isometry
from sparsejax.training import data, interrupt

TRUNK = "trunk/kernel"


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
    steps: of `batch` images.
    batch: images.
    seeds: how many are wanted.
    test: test images; 0 for all.
    curve: whether the accuracy over the steps goes into the results.
    unroll: see `VanillaCNN`.
    lowering: see `VanillaCNN`.
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
  batch: int = 16
  seeds: int = 1
  test: int = 0
  curve: bool = False
  unroll: int = 1
  lowering: Any = "auto"


WARM_UP = 10
# Between the states that a run goes on from after it was stopped.
SAVE_SECONDS = 120
# Over the read-out's inputs, each of mean square 1, whose number they add up to.
READOUT_RATE = 3.0
FIXED = ("support", "random")  # methods whose masks stay


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
    unroll=case.unroll,
    lowering=case.lowering,
  )


def make_rates(case: Case, params, rate: float):
  """A learning rate a leaf: of the kernels, their biases, the read-out."""
  width = params["params"]["readout"]["kernel"].shape[0]
  trunk = 0.0 if case.trained == "readout" else rate
  readout = 0.0 if case.trained == "trunk" else READOUT_RATE / width
  rates = {
    "trunk": {"kernel": trunk, "bias": trunk / case.depth},
    "readout": {"kernel": readout, "bias": readout},
  }
  return jax.tree.map(jnp.float32, {"params": rates})


def make_tx(case: Case, rates, seed: int = 0) -> optax.GradientTransformation:
  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    rise = jnp.minimum((step + 1) / WARM_UP, 1)
    return rise * jnp.maximum(1 - step / case.steps, 0)

  scale = optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, rates))
  inner = optax.chain(optax.sgd(schedule), scale)
  sparse = {"density": case.density, "where": TRUNK, "stacked": TRUNK, "seed": seed}
  sparse |= dict(case.method_kwargs)
  if case.method in FIXED:
    return sj.static_sparse(inner, update_every=None, **sparse)
  return getattr(sj, case.method)(inner, **sparse) if case.method else inner


def spectrum(seed: int, model, params) -> dict[str, float]:
  """Of the end-to-end Jacobian at a random input of 4 x 4 pixels; of seed 0 alone."""
  if seed:
    return {}
  x = jax.random.normal(jax.random.key(7), (4, 4, model.channels)) * model.q0**0.5
  found = isometry.end_to_end(model.layer, params["params"]["trunk"], x)
  logs = np.nan_to_num(found.log10, nan=999.0, neginf=-9999.0, posinf=9999.0)
  return {
    "log10_largest": float(logs[0]),
    "log10_median": float(np.median(logs)),
    "log10_smallest": float(logs[-1]),
  }


def train(members, data_dir: str, folder: pathlib.Path) -> list[dict]:
  """Trains (case, seed) pairs side by side, or goes on; records are kept as JSON.

  Pairs that are finished are left out. What goes side by side must be of one depth,
  data set, batch, number of steps and activation statistics, and keep its masks.
  """
  members = [m for m in members if not record_path(folder, *m).exists()]
  if not members:
    return []
  cases, seeds = zip(*members, strict=True)
  case = _common(cases)
  splits, mean, scale = load(case.dataset, data_dir)
  model = make_model(case)
  norm = lambda images: (images.astype(jnp.float32) - mean[None]) * scale
  images, labels = splits.train.images, splits.train.labels
  orders = [_order(seed, len(labels), case) for seed in seeds]

  def batch(count):
    rows = [order[count * case.batch :][: case.batch] for order in orders]
    return images[np.stack(rows)], labels[np.stack(rows)]

  def loss_fn(params, batch):
    logits = jnp.asarray(model.apply(params, norm(batch[0])))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
    return jnp.mean(losses), jnp.sum(jnp.argmax(logits, 1) == batch[1])

  started = [
    _start(one, seed, loss_fn, norm(jnp.asarray(images[:1])), images, labels, order)
    for one, seed, order in zip(cases, seeds, orders, strict=True)
  ]
  params, rates, masks = (_stack(parts) for parts in zip(*started, strict=True))
  tx = partial(make_tx, case, seed=seeds[0])
  state = jax.jit(_over(lambda p, r: tx(r).init(p)))(params, rates)
  if case.method in FIXED:
    empty = jax.tree.map(lambda m: None, params)
    empty["params"]["trunk"]["kernel"] = masks
    state = sj.with_masks(state, empty)
  if case.method:
    params = jax.jit(_over(sj.apply_masks))(params, sj.masks(state))
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
  # Its name holds how many go side by side: a state of others would not fit.
  name = f".{len(cases)}.npz"
  partial_path = record_path(folder, cases[0], seeds[0]).with_suffix(name)
  partial_path.parent.mkdir(parents=True, exist_ok=True)
  if partial_path.exists():
    params, state, records = _restore(partial_path, params, state)
  begun = time.monotonic() - records[0]["seconds"]
  every, saved = max(case.steps // 12, 1), time.monotonic()
  with interrupt.listen() as stop:
    for count in range(len(records[0]["loss"]), case.steps):
      params, state, *seen = step(params, state, batch(count), rates)
      loss, correct, norms = (np.asarray(x) for x in seen)
      for i, record in enumerate(records):
        record["loss"].append(float(loss[i]))
        record["accuracy"].append(float(correct[i]) / case.batch)
        if count in (0, case.steps // 2, case.steps - 1):
          record["gradients"][str(count)] = [float(n) for n in norms[i]]
      told = (count + 1) % every == 0
      seconds = time.monotonic() - begun
      records = [record | {"seconds": seconds} for record in records]
      if told and (count + 1) % (2 * every) == 0 and any(c.curve for c in cases):
        for record, value in zip(
          records, evaluate(params, splits.test, 400), strict=True
        ):
          record["test_curve"][str(count + 1)] = value
        # Looking does not count.
        begun = time.monotonic() - seconds
      if stop or time.monotonic() - saved > SAVE_SECONDS:
        _save(partial_path, params, state, records)
        saved = time.monotonic()
      if told:
        print(_line(cases, seeds, records, count + 1, every), flush=True)
      if stop:
        raise KeyboardInterrupt
  accuracies = evaluate(params, splits.test, case.test)
  for i, (one, seed) in enumerate(members):
    records[i]["test_accuracy"] = accuracies[i]
    records[i]["after"] = spectrum(seed, model, _pick(params, i))
    path = record_path(folder, one, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records[i], indent=1))
    print(f"{one.name} seed {seed}: test {accuracies[i]:.4f}", flush=True)
  partial_path.unlink(missing_ok=True)
  return records


def record_path(folder: pathlib.Path, case: Case, seed: int) -> pathlib.Path:
  return folder / f"{case.name}/seed={seed}.json"


def _common(cases) -> Case:
  """What the model and the optimizer of all are made by."""
  first, *others = cases
  if not others or set(cases) == {first}:
    return first
  methods = {c.method for c in cases}
  shared = {(c.depth, c.dataset, c.steps, c.batch, c.test, c.variances) for c in cases}
  if len(shared) > 1 or not methods <= {"", *FIXED}:
    raise ValueError(f"these cannot go side by side: {[c.name for c in cases]}")
  trained = {c.trained for c in cases}
  return dataclasses.replace(
    first,
    method="support" if methods & set(FIXED) else "",
    density=min(c.density for c in cases),
    trained=first.trained if len(trained) == 1 else "all",
    curve=any(c.curve for c in cases),
  )


def _order(seed: int, size: int, case: Case) -> np.ndarray:
  """Which image comes when: as many shuffles as it takes."""
  rng, need = np.random.default_rng(seed), case.steps * case.batch
  times = max(math.ceil(need / size), 2)
  return np.concatenate([rng.permutation(size) for _ in range(times)])


def _start(case, seed, loss_fn, example, images, labels, order):
  """Parameters, learning rates and masks of the trunk of one run."""
  params = jax.jit(make_model(case).init)(jax.random.key(seed), example)
  kernel = params["params"]["trunk"]["kernel"]
  masks = jnp.ones(kernel.shape, bool)
  if case.method == "support":
    masks = initializers.orthogonal_support(kernel, stacked=True)
  elif case.method:
    # The method's own first masks; they depend on its seed and density alone.
    tx = make_tx(case, make_rates(case, params, 1.0), seed)
    masks = sj.masks(jax.jit(tx.init)(params))["params"]["trunk"]["kernel"]
  parts = [order[i * case.batch :][: case.batch] for i in range(4)]
  batches = [(images[rows], labels[rows], masks) for rows in parts]
  rate = _rate(case, loss_fn, params, batches)
  return params, make_rates(case, params, rate), masks


def _over(f):
  """`f` over runs; of one run without `vmap`, for a batched product is slower."""

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
  seen = [f"{np.mean(r['accuracy'][-every:]):.3f}" for r in records]
  names = ", ".join(dict.fromkeys(c.name for c in cases))
  return (
    f"{names} seed {' '.join(map(str, seeds))}: step {count} of {cases[0].steps}, "
    f"loss {' '.join(loss)}, accuracy {' '.join(seen)}, {records[0]['seconds']:.0f} s"
  )


def _rate(case, loss_fn, params, batches) -> float:
  """Calibrated on the trunk; where no gradient comes through, what dense nets take."""
  scales = {"trunk/bias": 1 / case.depth, "readout": 0.0}
  dense = case.eta / (0.76 * case.depth)

  # Masks are an argument of the loss: captured they would be a constant of 92 MB.
  def loss(params, batch):
    return loss_fn(_masked(params, batch[2]), batch[:2])[0]

  if case.trained == "readout":
    return dense
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
    def one(params):
      logits = jnp.asarray(model.apply(params, norm(images)))
      return jnp.sum(jnp.argmax(logits, 1) == labels)

    return _over(one)(params)

  # A CPU's cache holds few images; an accelerator waits for each layer's start.
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
  temporary = path.with_name("partial.tmp.npz")
  np.savez(temporary, records=np.array(json.dumps(records)), **arrays)
  temporary.replace(path)


def _restore(path, params, state):
  treedef = jax.tree.structure((params, state))
  with np.load(path) as file:
    records = json.loads(str(file["records"]))
    leaves = [jnp.asarray(file[str(i)]) for i in range(treedef.num_leaves)]
  return (*treedef.unflatten(leaves), records)
