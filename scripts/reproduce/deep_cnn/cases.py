"""Cases of the deep CNNs: their models, optimizers and learning rates."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from sparsejax import initializers, models
from sparsejax.analysis import end_to_end
from sparsejax.training import data

TRUNK = "trunk/kernel"


@dataclasses.dataclass(frozen=True)
class Case:
  """One training case; `name` is its case in the results file.

  Attributes:
    name: path of its records.
    depth: number of layers.
    dataset: name in `sparsejax.training.data`.
    kernel_init: see `VanillaCNN`.
    variances: sigma_w^2 and sigma_b^2.
    trained: see `VanillaCNN`.
    method: "" (dense), "support" (fixed, orthogonal), "random" (fixed), "isometric",
      "rigl".
    method_kwargs: further arguments of the method.
    density: density of the trunk's kernels.
    eta: the reduction of the loss by the first step, to which the learning rate is
      calibrated.
    steps: number of steps.
    batch: images per step.
    seeds: number of seeds.
    test: number of test images; 0 for all.
    curve: whether the results contain the accuracy over the steps.
    unroll: see `VanillaCNN`.
    lowering: see `VanillaCNN`.
    reduced: whether images are reduced to 16 x 16 pixels; see `load`.
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
  reduced: bool = False


WARM_UP = 10
# Divided by the number of the readout's inputs, whose mean square is 1 each and whose
# contributions to a step add up.
READOUT_RATE = 3.0
FIXED = ("support", "random")  # methods whose masks stay


def load(name: str, data_dir: str, reduced: bool = False):
  """Loads the splits, the mean image, and the scale to images of mean square 1.

  Args:
    name: name in `sparsejax.training.data`.
    data_dir: folder of TFDS's data sets.
    reduced: whether to reduce images of up to 32 x 32 pixels to 16 x 16, at a third or
      a quarter of the cost per layer: gray ones are folded into 4 x 4 places instead of
      7 x 7, color ones into 8 x 8 instead of 16 x 16.

  Returns:
    The splits, the mean image, and the scale.
  """
  splits = data.load(name, data_dir, validation_fraction=0.0)
  if reduced:
    splits = splits._replace(
      train=splits.train._replace(images=_reduced(splits.train.images)),
      test=splits.test._replace(images=_reduced(splits.test.images)),
    )
  mean = splits.train.images.mean(0, dtype=np.float64)
  square = sum(
    float(((part - mean) ** 2).sum())
    for part in np.array_split(splits.train.images, 20)
  )
  scale = (square / splits.train.images.size) ** -0.5
  return splits, mean.astype(np.float32), np.float32(scale)


def _reduced(images: np.ndarray) -> np.ndarray:
  """Pads images to 32 x 32 pixels, and averages squares of 2 x 2."""
  edge = (32 - images.shape[1]) // 2
  edges = [(0, 0), (edge, edge), (edge, edge), (0, 0)]
  squares = np.pad(images, edges).reshape(len(images), 16, 2, 16, 2, -1)
  return np.round(squares.mean((2, 4))).astype(np.uint8)


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
  """Returns one learning rate per leaf: for kernels, their biases, and the readout."""
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
  """Summarizes the Jacobian at a random input of 4 x 4 pixels, for seed 0 only."""
  if seed:
    return {}
  x = jax.random.normal(jax.random.key(7), (4, 4, model.channels)) * model.q0**0.5
  found = end_to_end(model.layer, params["params"]["trunk"], x)
  logs = np.nan_to_num(found.log10, nan=999.0, neginf=-9999.0, posinf=9999.0)
  return {
    "log10_largest": float(logs[0]),
    "log10_median": float(np.median(logs)),
    "log10_smallest": float(logs[-1]),
  }


def shape(case: Case) -> Any:
  """Returns what vectorized runs share; a case whose masks change shares with none."""
  if case.method not in ("", *FIXED):
    return case
  return (
    case.depth,
    case.dataset,
    case.reduced,
    case.steps,
    case.batch,
    case.test,
    case.variances,
  )


def common(cases) -> Case:
  """Returns the case that defines the model and the optimizer of all members."""
  first, *others = cases
  if not others or set(cases) == {first}:
    return first
  methods = {c.method for c in cases}
  if len({shape(c) for c in cases}) > 1:
    raise ValueError(f"these cases cannot be vectorized: {[c.name for c in cases]}")
  trained = {c.trained for c in cases}
  return dataclasses.replace(
    first,
    method="support" if methods & set(FIXED) else "",
    density=min(c.density for c in cases),
    trained=first.trained if len(trained) == 1 else "all",
    curve=any(c.curve for c in cases),
  )


def start(case, seed, loss_fn, example, images, labels, order):
  """Returns parameters, learning rates and the trunk's masks of one run."""
  params = jax.jit(make_model(case).init)(jax.random.key(seed), example)
  kernel = params["params"]["trunk"]["kernel"]
  masks = jnp.ones(kernel.shape, bool)
  if case.method == "support":
    masks = initializers.orthogonal_support(kernel, stacked=True)
  elif case.method:
    # The method's initial masks, which depend only on its seed and density.
    tx = make_tx(case, make_rates(case, params, 1.0), seed)
    masks = sj.masks(jax.jit(tx.init)(params))["params"]["trunk"]["kernel"]
  parts = [order[i * case.batch :][: case.batch] for i in range(4)]
  batches = [(images[rows], labels[rows], masks) for rows in parts]
  rate = _rate(case, loss_fn, params, batches)
  return params, make_rates(case, params, rate), masks


def _rate(case, loss_fn, params, batches) -> float:
  """Calibrates the rate on the trunk; without a gradient, returns the dense rate."""
  scales = {"trunk/bias": 1 / case.depth, "readout": 0.0}
  dense = case.eta / (0.76 * case.depth)

  # Masks are an argument of the loss; captured, they would be a constant of 92 MB.
  def loss(params, batch):
    return loss_fn(_masked(params, batch[2]), batch[:2])[0]

  if case.trained == "readout":
    return dense
  try:
    rate = models.calibrate_learning_rate(loss, params, batches, case.eta, scales)
  except ValueError as e:
    print(f"{case.name}: {e}", flush=True)
    return dense
  # The calibration is meaningless for a network that hardly passes a gradient.
  return float(np.clip(rate, dense / 10, 20 * dense))


def _masked(params, mask):
  trunk = params["params"]["trunk"]
  trunk = {**trunk, "kernel": jnp.where(mask, trunk["kernel"], 0)}
  return {"params": {**params["params"], "trunk": trunk}}
