"""Measures class specialization of dense and sparse networks on MNIST.

  python -m scripts.reproduce.class_specialization --workdir=runs/specialization

Trains LeNet-300-100 and LeNet-5, dense and by sparse momentum, and computes for each
hidden channel the largest share of its activation that belongs to one class (0.1: it
responds to all ten classes alike, 1: to a single one). The table has the means by layer
and density, the analysis of variance layer x sparsity against the dense networks, and
two speed-ups: the paper's estimate from multiply-adds, and the measured one of the
compacted network.

Takes five minutes on one CPU core. Finished runs are not repeated, and a stopped run
resumes; several processes may share the workdir with different --models. --write_only
trains nothing: it times the finished networks again, in half a minute, and writes the
table and the plot.
"""

import functools
import json
import pathlib
import sys

import numpy as np
from absl import flags, logging

from scripts import ROOT
from scripts.benchmarks import compaction
from scripts.reproduce.class_specialization import activations
from sparsejax import training
from sparsejax.analysis import class_specialization, specialization_anova
from sparsejax.experiments import command_line, results

EPOCHS = {"lenet300": 10, "lenet5": 5}

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
_OUT = flags.DEFINE_string(
  "out", str(ROOT / "results/class_specialization.json"), "The results file to write."
)
_PLOT = flags.DEFINE_string(
  "plot", str(ROOT / "docs/assets/class_specialization.png"), "The plot to write."
)
_MODELS = flags.DEFINE_multi_enum(
  "models", list(EPOCHS), list(EPOCHS), "Models to train."
)
_DENSITIES = flags.DEFINE_list(
  "densities", ["1", "0.2", "0.05"], "Densities; 1 is dense."
)
_SEEDS = flags.DEFINE_integer("seeds", 2, "Seeds per network.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("num_epochs", None, "Epochs per run; default: 10 and 5.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds of timing.", 1)
_WRITE_ONLY = flags.DEFINE_bool("write_only", False, "Train nothing; time and write.")


def folder(model: str, density: float, seed: int) -> pathlib.Path:
  return pathlib.Path(_WORKDIR.value) / f"{model}/density={density:g}/seed={seed}"


def train(model: str, density: float, seed: int) -> None:
  """Trains a network and sums its activations by class, unless that is done."""
  path = folder(model, density, seed)
  if (path / activations.FILE).exists():
    return
  print(f"{model}, density {density:g}, seed {seed}", flush=True)
  method = "dense" if density == 1 else "sparse_momentum"
  config = command_line.load_config(ROOT / f"configs/mnist_{model}.py", method)
  # Both networks use the same recipe here, unlike in their own tables.
  config.update(batch_size=100, update_every=540, log_every=540, lr_schedule="cosine")
  config.update(density=density, seed=seed)
  config.num_epochs = _EPOCHS.value or EPOCHS[model]
  if not training.train_and_evaluate(config, path, summarize=False).finished:
    sys.exit(130)
  activations.write(path, training.load_run(path))


def finished(model: str, density: float) -> list[pathlib.Path]:
  paths = [folder(model, density, seed) for seed in range(_SEEDS.value)]
  return [path for path in paths if (path / activations.FILE).exists()]


def shares(model: str, density: float) -> list[dict[str, np.ndarray]]:
  """Returns the largest class share of each channel, by layer, for each network."""
  return [
    {layer: class_specialization(a) for layer, a in activations.read(path).items()}
    for path in finished(model, density)
  ]


def pooled(networks: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Concatenates the channels of all networks."""
  return {layer: np.concatenate([n[layer] for n in networks]) for layer in networks[0]}


def means(model: str, density: float) -> list[dict]:
  case = f"{model}/density={density:g}"
  paths, found = finished(model, density), shares(model, density)
  summaries = [json.loads((path / "summary.json").read_text()) for path in paths]
  error = [s["test_error_percent"][0] for s in summaries]
  note = f"MNIST, {summaries[0]['step']:,} steps of 100 images"
  runs = results.trained_in(paths)
  rows = [results.row(case, "test_error_percent", error, note=note, runs=runs)]
  for layer in found[0]:
    values = [100 * float(np.mean(network[layer])) for network in found]
    text = "mean over channels of the largest class's share; 10 means all classes alike"
    rows.append(
      results.row(
        f"{case}/{layer}", "class_share_percent", values, note=text, runs=runs
      )
    )
  return rows


def variance(model: str, density: float) -> list[dict]:
  """Returns the analysis of variance against the dense networks, over all seeds."""
  dense, sparse = pooled(shares(model, 1)), pooled(shares(model, density))
  case = f"{model}/density={density:g}/against_dense"
  note = f"two-way analysis of variance of {sum(map(len, dense.values()))} dense and "
  note += f"{sum(map(len, sparse.values()))} sparse channels"
  runs = results.trained_in(finished(model, 1) + finished(model, density))
  row = functools.partial(results.row, case, runs=runs)
  rows = []
  for name, effect in specialization_anova(dense, sparse).items():
    if name == "residual":
      continue
    name = name.replace("layer:sparse", "interaction")
    square = 100 * effect.eta_squared
    rows.append(row(f"{name}_eta_squared_percent", square, note=note))
    rows.append(row(f"{name}_p_value", effect.p, note=note))
  gaps = [100 * float(np.mean(sparse[n]) - np.mean(dense[n])) for n in dense]
  text = "sparse minus dense, mean over the layers"
  difference = float(np.mean(gaps))
  rows.append(row("class_share_difference_points", difference, note=text))
  return rows


def speed(model: str, density: float) -> list[dict]:
  """Returns estimated and measured speed-ups of the first network."""
  path = finished(model, density)[0]
  run = training.load_run(path)
  return compaction.measure(
    f"{model}/density={density:g}/speed",
    lambda params, images: run.apply(params, run.model_state, images),
    run.params,
    run.masks,
    activations.first_images(run, compaction.IMAGES),
    rounds=_ROUNDS.value,
  )


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.ERROR)  # hide orbax's warnings about optional files
  densities = [float(d) for d in _DENSITIES.value]
  if 1 not in densities:
    sys.exit(f"Error: --densities must contain 1, the dense network; got {densities}.")
  try:
    for model in () if _WRITE_ONLY.value else _MODELS.value:
      for seed in range(_SEEDS.value):
        for density in densities:
          train(model, density, seed)
    rows, found = [], {}
    for model in EPOCHS:
      done = [d for d in densities if finished(model, d)]
      found |= {(model, d): pooled(shares(model, d)) for d in done}
      for density in done:
        rows += means(model, density)
        if density < 1 and 1 in done:
          rows += variance(model, density)
        if density < 1:
          print(f"timing {model} at density {density:g}", flush=True)
          rows += speed(model, density)
  except (training.TrainingError, OSError) as e:
    sys.exit(f"Error: {e}")
  if not rows:
    sys.exit(f"Error: there is no finished run in {_WORKDIR.value}.")
  results.write_results(_OUT.value, "class_specialization", rows)
  activations.plot(found, pathlib.Path(_PLOT.value))
  print(f"Wrote {_OUT.value} and {_PLOT.value}.")


if __name__ == "__main__":
  command_line.run(main)
