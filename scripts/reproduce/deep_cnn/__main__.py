r"""Trains plain CNNs of up to 10,000 layers and writes results/deep_cnn.json.

  python -m scripts.reproduce.deep_cnn --workdir=runs/deep_cnn --data_dir=...

The workdir contains one record per case. A stopped case resumes, and several processes
may share the workdir with different `--cases` (regular expressions). `--write_only`
writes the table and the figures from finished cases; rows of cases that the workdir
lacks are left unchanged. A run of 300 steps at 10,000 layers takes about 15 minutes on
two CPU cores, and 8 more for the test set; at 1,000 layers it takes a tenth of that.

On an accelerator the time is dominated by launching each layer, so twelve networks take
hardly longer than one: `--together --lowering=slices --unroll=8` trains the cases of
one depth with fixed masks in one vectorized run, twelve of 10,000 layers in two and a
half minutes on one H200.

The controls, `mnist/linear` and `readout_only`, are linear classifiers on pixels and on
an untrained trunk; their learning rates are tuned on validation images. --cases=linear
takes a minute.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import re
from typing import Any

import jax
import numpy as np
from absl import flags

from scripts.reproduce.deep_cnn import linear
from scripts.reproduce.deep_cnn.cases import Case, load, shape
from scripts.reproduce.deep_cnn.training import image_order, record_path, train
from sparsejax import models
from sparsejax.analysis import (
  COLORS,
  Spectrum,
  end_to_end,
  new_figure,
  plot_depth_scale,
  plot_spectra,
  style_axes,
)
from sparsejax.experiments import command_line, results
from sparsejax.initializers import mean_field
from sparsejax.training import environment, read_json

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the records.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of TFDS's data sets.")
_CASES = flags.DEFINE_string(
  "cases", "", "A regular expression of cases; default: all."
)
_SEEDS = flags.DEFINE_list(
  "seeds", None, "Seeds to train; default: those of each case."
)
_OUT = flags.DEFINE_string("out", "results/deep_cnn.json", "The results file to write.")
_PLOTS = flags.DEFINE_string("plots", "plots", "Folder of the figures.")
_TOGETHER = flags.DEFINE_bool(
  "together", False, "Vectorize runs of one shape; for accelerators."
)
_UNROLL = flags.DEFINE_integer("unroll", 1, "Layers per iteration of the scan.")
_LOWERING = flags.DEFINE_string("lowering", "auto", "Lowering of the convolutions.")
_WRITE_ONLY = flags.DEFINE_bool(
  "write_only", False, "Train nothing; write the results."
)

PAPER_VARIANCES = (1.05, 2.01e-5)
SOURCE = "Xiao et al. 2018, read off figure 1; its text has no accuracies"
DEEP = "mnist/depth=10000"
SPARSE = {"kernel_init": "sparse_orthogonal", "method": "support", "density": 0.25}
LONG: dict[str, Any] = {"steps": 2000, "batch": 128}
REDUCED: dict[str, Any] = {"steps": 2000, "batch": 64, "reduced": True}
_ISOMETRIC = (("update_every", 20), ("end_step", 220))
CASES = [
  Case("mnist/depth=100/delta_orthogonal", 100),
  Case("mnist/depth=1000/delta_orthogonal", 1000, seeds=3),
  Case("mnist/depth=1000/sparse_orthogonal/density=0.25", 1000, seeds=3, **SPARSE),
  Case("mnist/depth=1000/random/density=0.25", 1000, method="random", density=0.25),
  Case(
    "mnist/depth=1000/isometric/density=0.25",
    1000,
    method="isometric",
    density=0.25,
    method_kwargs=_ISOMETRIC,
    seeds=3,
  ),
  Case(
    "mnist/depth=1000/isometric_without_retraction/density=0.25",
    1000,
    method="isometric",
    density=0.25,
    method_kwargs=(*_ISOMETRIC, ("retract", False)),
  ),
  Case(
    "mnist/depth=1000/rigl/density=0.25",
    1000,
    method="rigl",
    density=0.25,
    method_kwargs=_ISOMETRIC,
  ),
  Case(
    "mnist/depth=1000/isometric/density=0.125",
    1000,
    kernel_init="sparse_orthogonal",
    method="isometric",
    density=0.125,
    method_kwargs=_ISOMETRIC,
  ),
  Case(f"{DEEP}/delta_orthogonal", 10_000, seeds=3, curve=True),
  Case(
    f"{DEEP}/gaussian",
    10_000,
    kernel_init="gaussian",
    variances=PAPER_VARIANCES,
    test=2000,
  ),
  Case(f"{DEEP}/lecun", 10_000, kernel_init="lecun", test=2000),
  Case(f"{DEEP}/sparse_orthogonal/density=0.25", 10_000, seeds=3, **SPARSE),
  Case(f"{DEEP}/frozen_readout", 10_000, trained="trunk", seeds=3),
  *[
    Case(f"mnist/depth={d}/delta_orthogonal", d, curve=True) for d in (1250, 2500, 5000)
  ],
  # Longer runs, for accelerators.
  Case(f"{DEEP}/delta_orthogonal/batch=128", 10_000, steps=400, batch=128, curve=True),
  *[
    Case(f"mnist/depth={d}/{name}/steps=2000", d, seeds=3, curve=True, **LONG, **kind)
    for d in (1000, 10_000)
    for name, kind in (
      ("delta_orthogonal", {}),
      ("sparse_orthogonal/density=0.25", SPARSE),
    )
  ],
  # The same with images of 16 x 16 pixels, for CPUs.
  *[
    Case(f"mnist16/depth={d}/{name}", d, seeds=3, curve=True, **REDUCED, **kind)
    for d in (1000, 10_000)
    for name, kind in (
      ("delta_orthogonal", {}),
      ("sparse_orthogonal/density=0.25", SPARSE),
    )
  ],
  *[
    Case(
      f"mnist16/depth=10000/{name}/steps=3000",
      10_000,
      curve=True,
      **{**REDUCED, **kind, "steps": 3000},
    )
    for name, kind in (
      ("delta_orthogonal", {}),
      ("sparse_orthogonal/density=0.25", SPARSE),
    )
  ],
  Case(
    "cifar10/depth=1250/delta_orthogonal/batch=128",
    1250,
    "cifar10",
    steps=1200,
    batch=128,
    curve=True,
  ),
  *[
    Case(
      f"cifar16/depth=1000/{name}",
      1000,
      "cifar10",
      seeds=3,
      curve=True,
      **{**REDUCED, **kind, "steps": 4000},
    )
    for name, kind in (
      ("delta_orthogonal", {}),
      ("sparse_orthogonal/density=0.25", SPARSE),
    )
  ],
]
SPECTRA = {
  "delta-orthogonal, σw²=1": ("delta_orthogonal", (1.0, 0.0)),
  "delta-orthogonal, σw²=1.05": ("delta_orthogonal", PAPER_VARIANCES),
  "block-orthogonal, σw²=1": ("block_orthogonal", (1.0, 0.0)),
  "sparse orthogonal, σw²=1": ("sparse_orthogonal", (1.0, 0.0)),
  "Gaussian, σw²=1.05": ("gaussian", PAPER_VARIANCES),
}
DEPTHS = (10, 100, 1000, 10_000)
# The plot of the depth scale: trunks of several depths and sigma_w^2, trained briefly.
SCALE_DEPTHS, SCALE_STEPS = (20, 50, 100, 200, 400), 40
SCALE_VARIANCES = (0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.4, 1.7)


def groups() -> list[list[tuple[Case, int]]]:
  """Returns the runs to do, grouped with those that can share a vectorized run."""
  wanted = [
    (dataclasses.replace(case, unroll=_UNROLL.value, lowering=_LOWERING.value), seed)
    for seed in range(3)
    for case in CASES
    if seed < case.seeds and re.search(_CASES.value, case.name) and chosen(seed)
  ]
  if not _TOGETHER.value:
    return [[run] for run in wanted]
  together: dict[Any, list] = {}
  for case, seed in wanted:
    key = shape(case)
    together.setdefault((key, seed) if key == case else key, []).append((case, seed))
  return list(together.values())


def chosen(seed: int | None) -> bool:
  """Returns whether `--seeds` has a seed; what has no seed is always chosen."""
  return seed is None or _SEEDS.value is None or str(seed) in _SEEDS.value


def folder() -> pathlib.Path:
  return pathlib.Path(_WORKDIR.value)


def kept(name: str, make, seed: int | None = None) -> Any:
  """Returns a record of the workdir, `{"value", "run"}`, or None if it is missing.

  A missing record is computed and written if `--cases` has it, and `--seeds` its seed.
  """
  path = folder() / f"{name}.json"
  wanted = re.search(_CASES.value, name) and chosen(seed)
  if not path.exists() and not _WRITE_ONLY.value and wanted:
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"value": make(), "run": environment()}
    path.write_text(json.dumps(record, indent=1))
    print(f"{name}: done", flush=True)
  return json.loads(path.read_text()) if path.exists() else None


def jacobian(kind: str, variances, depth: int) -> list[float]:
  """Returns log10 singular values at a random input of 4 x 4 pixels, 16 channels."""
  model = models.VanillaCNN(
    depth=depth,
    kernel_init=kind,
    weight_variance=variances[0],
    bias_variance=variances[1],
    input_variance=None if variances == (1.0, 0.0) else 0.0259,
  )
  x = jax.random.normal(jax.random.key(1), (4, 4, 16)) * model.q0**0.5
  init = jax.jit(model.make_kernel_init(), static_argnums=1)
  kernel = init(jax.random.key(0), (depth, 3, 3, 16, 16))
  bias = jax.random.normal(jax.random.key(2), (depth, 16)) * variances[1] ** 0.5
  found = end_to_end(model.layer, {"kernel": kernel, "bias": bias}, x)
  logs = np.nan_to_num(found.log10, nan=-9999, neginf=-9999)
  return [round(float(v), 4) for v in logs]


def depth_scale(depth: int, variance: float) -> float:
  case = Case(
    f"depth_scale/depth={depth}/weight_variance={variance:g}",
    depth,
    kernel_init="gaussian",
    variances=(variance, 2.01e-5),
    trained="trunk",
    steps=SCALE_STEPS,
    test=50,
  )
  train([(case, 0)], _DATA_DIR.value, folder())
  record = read_json(record_path(folder(), case, 0))
  last = np.array(record["loss"][-10:])
  return float(last.mean()) if np.isfinite(last).all() else 99.0


def made_on(records: list[dict]) -> str:
  """Describes the devices of the records, and how many runs shared each."""
  found = []
  for r in records:
    text = f"on {'CPU cores' if r['device'] == 'cpu' else 'one ' + r['device']}"
    if r["together"] > 1:
      text += f", {r['together']} runs side by side in these minutes"
    found.append(text)
  return "; ".join(dict.fromkeys(found))


def rows_of(case: Case) -> list[dict]:
  """Returns the rows of a case, over its finished seeds."""
  paths = sorted((folder() / case.name).glob("seed=*.json"))
  records = [read_json(p) for p in paths]
  if not records:
    return []
  tail = max(case.steps // 10, 1)
  count = case.test or 10_000
  pixels = " of 16 x 16 pixels" if case.reduced else ""
  note = (
    f"{case.steps} steps of {case.batch} images{pixels}, 16 channels; "
    f"{count:,} test images; "
    f"learning rate {records[0]['rate']:g}, seeds "
    f"{', '.join(p.stem[5:] for p in paths)}; {made_on(records)}"
  )
  finite = lambda v: v if np.isfinite(v) else 99.0
  metrics = {
    "test_accuracy_percent": [100 * r["test_accuracy"] for r in records],
    "train_loss": [finite(float(np.mean(r["loss"][-tail:]))) for r in records],
    "minutes": [r["seconds"] / 60 for r in records],
    "first_layer_gradient_norm": [finite(r["gradients"]["0"][0]) for r in records],
  }
  for key, when in itertools.product(("median", "smallest"), ("before", "after")):
    # Jacobians are measured for seed 0 only.
    if values := [r[when][f"log10_{key}"] for r in records if r[when]]:
      metrics[f"jacobian_log10_{key}_{when}"] = values
  # The paper's values are approximate, read from its plots.
  paper = {"mnist": 99.0, "cifar10": 82.0}
  if case.method or case.reduced:
    paper = {}
  runs = [r["run"] for r in records]
  rows = []
  for metric, values in metrics.items():
    published = metric == "test_accuracy_percent" and "delta" in case.name
    rows.append(
      results.row(
        case.name,
        metric,
        values,
        paper=paper.get(case.dataset) if published else None,
        source=SOURCE if published and case.dataset in paper else "",
        note=f"{note}; of seed 0 alone" if "jacobian" in metric else note,
        runs=runs,
      )
    )
  for at, value in records[0]["test_curve"].items() if case.curve else ():
    step = int(at)
    seen = 100 * float(np.mean(records[0]["accuracy"][max(step - 50, 0) : step]))
    place = f"{case.name}/step={step}"
    some = "seed 0, the first 400 test images"
    row = functools.partial(results.row, place, runs=runs[:1])
    rows.append(row("test_accuracy_percent", 100 * value, note=some))
    rows.append(row("train_accuracy_percent", seen, note="seed 0, last 50 steps"))
  return rows


def linear_control(control: linear.Control, seed: int) -> dict[str, Any]:
  """Trains a linear control, and returns its result as JSON values."""
  case = Case(
    control.name,
    max(control.depth, 1),
    control.dataset,
    steps=control.steps,
    batch=control.batch,
  )
  splits, mean, scale = load(case.dataset, _DATA_DIR.value, control.reduced)
  norm = lambda images: (images.astype(np.float32) - mean[None]) * scale
  features = linear.make_features(control, seed, norm, splits.train.images[:1])
  order = image_order(seed, len(splits.train.labels), case)
  result = linear.train(
    features, splits.train, splits.test, order, control.steps, control.batch
  )
  return result._asdict()


def control_rows(control: linear.Control) -> list[dict]:
  """Returns the row of a linear control, over its finished seeds."""
  found = {
    seed: record
    for seed in range(control.seeds)
    if (
      record := kept(
        f"{control.name}/seed={seed}",
        functools.partial(linear_control, control, seed),
        seed,
      )
    )
  }
  if not found:
    return []
  rates = ", ".join(f"{record['value']['rate']:g}" for record in found.values())
  note = (
    f"{control.steps} steps of {control.batch} images; 10,000 test images; the rates,"
    f" {rates} by the number of inputs, are the best of {linear.RATES} on"
    f" {linear.VALIDATION:,} validation images; seeds {', '.join(map(str, found))}"
  )
  values = [record["value"]["test"] for record in found.values()]
  runs = [record["run"] for record in found.values()]
  metric = "test_accuracy_percent"
  return [results.row(control.name, metric, values, note=note, runs=runs)]


def partial_control(control: linear.Control, seed: int):
  return lambda: linear_control(control, seed)


def plot_curves(path: pathlib.Path) -> None:
  """Plots training and test accuracy against steps, one color per depth."""
  figure, axes = new_figure()
  drawn = False
  for color, depth in zip(COLORS, (1250, 2500, 5000, 10_000), strict=False):
    file = folder() / f"mnist/depth={depth}/delta_orthogonal/seed=0.json"
    if not file.exists():
      continue
    record, drawn = read_json(file), True
    seen = np.convolve(record["accuracy"], np.ones(25) / 25, "valid")
    axes.plot(np.arange(25, 25 + len(seen)), 100 * seen, color=color, lw=1, alpha=0.6)
    curve = {int(k): v for k, v in record["test_curve"].items()}
    curve[len(record["loss"])] = record["test_accuracy"]
    steps, values = zip(*sorted(curve.items()), strict=True)
    axes.plot(
      steps, 100 * np.array(values), "o-", color=color, ms=4, label=f"{depth:,} layers"
    )
  if not drawn:
    return
  axes.set_xlabel("steps of 16 images")
  axes.set_ylabel("MNIST accuracy, %: test (dots), train")
  axes.legend(loc="lower right")
  style_axes(axes)
  figure.savefig(path, dpi=150)


def main(argv: list[str]) -> None:
  del argv
  plots = pathlib.Path(_PLOTS.value)
  plots.mkdir(parents=True, exist_ok=True)
  # Spectra of Jacobians at initialization.
  rows, spectra = [], {}
  for name, (kind, variances) in SPECTRA.items():
    for depth in DEPTHS:
      case = f"jacobian/depth={depth}/{kind}/weight_variance={variances[0]:g}"
      logs = kept(case, lambda k=kind, v=variances, d=depth: jacobian(k, v, d))
      if logs is None:
        continue
      found = Spectrum(np.array(logs["value"]))
      spectra.setdefault(name, {})[depth] = found
      note = "random 4 x 4 x 16 input, seed 0; of float32 products"
      for metric, value in (
        ("log10_median_singular_value", found.log10_median),
        ("log10_condition_number", float(found.log10[0] - found.log10[-1])),
      ):
        rows.append(results.row(case, metric, value, note=note, runs=[logs["run"]]))
  if not _WRITE_ONLY.value:
    for group in groups():
      train(group, _DATA_DIR.value, folder())
  # Training losses over depth and weight variance, for the plot of the depth scale.
  losses = np.full((len(SCALE_DEPTHS), len(SCALE_VARIANCES)), np.nan)
  for i, j in np.ndindex(*losses.shape):
    depth, variance = SCALE_DEPTHS[i], SCALE_VARIANCES[j]
    name = f"depth_scale/depth={depth}/weight_variance={variance:g}/loss"
    record = kept(name, lambda d=depth, v=variance: depth_scale(d, v))
    losses[i, j] = np.nan if record is None else record["value"]
    if record is not None:
      note = (
        f"{SCALE_STEPS} steps, Gaussian kernels, frozen read-out, mean of the last 10"
      )
      value, runs = record["value"], [record["run"]]
      case = name.removesuffix("/loss")
      rows.append(results.row(case, "train_loss", value, note=note, runs=runs))
  # Collect the rows of all finished cases and draw the plots.
  for control in linear.CONTROLS:
    rows += control_rows(control)
  for case in CASES:
    rows += rows_of(case)
  if spectra:
    plot_spectra(spectra).savefig(plots / "jacobian.png", dpi=150)
  if np.isfinite(losses).all():
    lengths = [mean_field.correlation_length(v, 2.01e-5) for v in SCALE_VARIANCES]
    figure = plot_depth_scale(SCALE_DEPTHS, SCALE_VARIANCES, losses, lengths)
    figure.savefig(plots / "depth_scale.png", dpi=150)
  plot_curves(plots / "deep_cnn_depths.png")
  if rows:
    whole = results.merge_with_existing(rows, _OUT.value)
    results.write_results(_OUT.value, "deep_cnn", whole)


if __name__ == "__main__":
  command_line.run(main)
