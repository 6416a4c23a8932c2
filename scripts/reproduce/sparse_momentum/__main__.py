"""Trains the MNIST networks of sparse momentum and writes the table of their errors.

  python -m scripts.reproduce.sparse_momentum --workdir=runs/mnist_sparse_momentum

The table is results/mnist_sparse_momentum.json. The networks are LeNet-300-100 and
LeNet-5 (Caffe), by the recipes of configs/mnist_lenet300.py and
configs/mnist_lenet5.py. A run takes about two minutes (LeNet-300-100) or six (LeNet-5)
on one CPU core. Finished runs are not repeated, and a stopped run resumes; several
processes may share the workdir with different --models or --densities. --write_only
writes the table from finished runs; the rows of cases without a run in the workdir are
left unchanged.
"""

import json
import pathlib
import sys

from absl import flags, logging

from scripts import ROOT
from sparsejax import training
from sparsejax.experiments import command_line, results

# Percent of error and its standard error, by density: the sparse momentum of the tables
# in results/ of the authors' repository. (At 5 % the second table has 1.47.)
TABLES = {
  "lenet300": {
    "MNIST_compression_comparison_lenet300-100.csv": {
      0.01: (2.36, 0.044),
      0.015: (2.053, 0.032),
      0.018: (1.984, 0.053),
      0.02: (1.99, 0.019),
      0.044: (1.552, 0.027),
      0.05: (1.53, 0.02),
      0.08: (1.447, 0.014),
      0.083: (1.426, 0.02),
    },
    "MNIST_sparse_summary.csv": {
      0.03: (1.7, 0.055),
      0.04: (1.58, 0.023),
      0.1: (1.33, 0.026),
    },
  },
  "lenet5": {
    "MNIST_compression_comparison_lenet5.csv": {
      0.004: (1.403, 0.088),
      0.005: (1.144, 0.024),
      0.009: (0.894, 0.033),
      0.01: (0.83, 0.04),
      0.02: (0.76, 0.022),
      0.05: (0.69, 0.021),
      0.08: (0.645, 0.019),
      0.093: (0.642, 0.03),
    },
  },
}
# By model, then density: error, standard error, and the name of the table.
PAPER = {
  model: {
    density: (*values, name)
    for name, table in tables.items()
    for density, values in table.items()
  }
  for model, tables in TABLES.items()
}
SOURCE = "Dettmers & Zettlemoyer 2019, results/{} of the authors' repository"
SEEDS = {"lenet300": 5, "lenet5": 3}

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
_OUT = flags.DEFINE_string(
  "out", str(ROOT / "results/mnist_sparse_momentum.json"), "The results file to write."
)
_MODELS = flags.DEFINE_multi_enum(
  "models", list(PAPER), list(PAPER), "Models to train."
)
_DENSITIES = flags.DEFINE_list("densities", None, "Densities to train; default: all.")
_EPOCHS = flags.DEFINE_integer(
  "num_epochs", None, "Epochs per run; default: the config's."
)
_WRITE_ONLY = flags.DEFINE_bool(
  "write_only", False, "Train nothing; write the results."
)


def run_dir(model: str, density: float, seed: int) -> pathlib.Path:
  return pathlib.Path(_WORKDIR.value) / f"{model}/density={density:g}/seed={seed}"


def train(model: str, density: float, seed: int) -> bool:
  workdir = run_dir(model, density, seed)
  if (workdir / "summary.json").exists():
    return True
  print(f"{model}, density {density:g}, seed {seed}", flush=True)
  path = ROOT / f"configs/mnist_{model}.py"
  config = command_line.load_config(path, "sparse_momentum")
  config.update(density=density, seed=seed, log_every=540)
  if _EPOCHS.value:
    config.num_epochs = _EPOCHS.value
  return training.train_and_evaluate(config, workdir).finished


def rows() -> list[dict]:
  table = []
  for model, densities in PAPER.items():
    for density, (paper, sem, name) in densities.items():
      dirs = [run_dir(model, density, seed) for seed in range(SEEDS[model])]
      done = [d for d in dirs if (d / "summary.json").exists()]
      case = f"{model}/density={density:g}"
      if not done:
        continue
      summaries = [json.loads((d / "summary.json").read_text()) for d in done]
      batch = json.loads((done[0] / "config.json").read_text())["batch_size"]
      table.append(
        results.row(
          case=case,
          metric="test_error_percent",
          values=[s["test_error_percent"][0] for s in summaries],
          paper=paper,
          source=SOURCE.format(name),
          note=f"{summaries[0]['step']} steps of {batch} images; seeds "
          f"{', '.join(d.name.removeprefix('seed=') for d in done)}; paper's standard"
          f" error {sem}",
          runs=results.trained_in(done),
        )
      )
  return results.merge_with_existing(table, _OUT.value)


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  for model in _MODELS.value:
    chosen = [float(d) for d in _DENSITIES.value or PAPER[model]]
    # Seeds are the outer loop, so that every density has a first run early.
    for seed in range(SEEDS[model]):
      for density in chosen:
        if not _WRITE_ONLY.value and not train(model, density, seed):
          sys.exit(130)
  results.write_results(_OUT.value, "mnist_sparse_momentum", rows())
  print(f"Wrote {_OUT.value}.")


if __name__ == "__main__":
  command_line.run(main)
