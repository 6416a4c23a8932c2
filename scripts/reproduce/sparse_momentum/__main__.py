"""Trains the MNIST networks of sparse momentum and writes the table of their errors.

  python -m scripts.reproduce.sparse_momentum --workdir=runs/mnist_sparse_momentum

The table is results/mnist_sparse_momentum.json. The networks are LeNet-300-100 and
LeNet-5 (Caffe), by the recipes of configs/mnist_lenet300.py and
configs/mnist_lenet5.py, and LeNet-5 by the published recipe, which diverges, and by
others between it and the config's. A run takes about two minutes (LeNet-300-100) or six
(LeNet-5; twenty for 100 epochs) on one CPU core. Finished runs are not repeated, and a
stopped run resumes; several processes may share the workdir with different --cases.
--write_only writes the table from finished runs; the rows of cases without a run in the
workdir are left unchanged.
"""

import json
import pathlib
import re
import sys

from absl import flags, logging

from scripts import ROOT
from scripts.reproduce.sparse_momentum.published import PAPER, SOURCE
from sparsejax import training
from sparsejax.experiments import command_line, results

# The authors' recipe for LeNet-5, as fields of the config.
PUBLISHED = {
  "update_every": 540,
  "learning_rate": 0.1,
  "lr_schedule": "step",
  "lr_decay_every": 25_000,
  "lr_decay_factor": 0.1,
  "weight_decay": 5e-4,
  "batch_size": 100,
  "num_epochs": 100,
  "drop_fraction": 0.5,
  "rescale_start": False,
}
# Recipes of LeNet-5 at 5 %, by what the case adds to `lenet5/density=0.05`.
RECIPES = {
  "published": PUBLISHED,
  "published/learning_rate=0.05": PUBLISHED | {"learning_rate": 0.05},
  "batch=100/epochs=100": PUBLISHED | {"drop_fraction": 0.2},
}
SEEDS = {"lenet300": 5, "lenet5": 3}

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
_OUT = flags.DEFINE_string(
  "out", str(ROOT / "results/mnist_sparse_momentum.json"), "The results file to write."
)
_CASES = flags.DEFINE_string(
  "cases", "", "A regular expression of cases; default: all."
)
_EPOCHS = flags.DEFINE_integer(
  "num_epochs", None, "Epochs per run; default: the config's."
)
_WRITE_ONLY = flags.DEFINE_bool(
  "write_only", False, "Train nothing; write the results."
)


def cases() -> dict[str, dict]:
  """Returns the fields that differ from the model's config, by case."""
  found = {case: {"density": float(case.split("=")[1])} for case in PAPER}
  base = "lenet5/density=0.05"
  found |= {f"{base}/{name}": found[base] | RECIPES[name] for name in RECIPES}
  return {name: f for name, f in found.items() if re.search(_CASES.value, name)}


def seeds(case: str) -> int:
  return SEEDS[case.split("/")[0]]


def run_dir(case: str, seed: int) -> pathlib.Path:
  return pathlib.Path(_WORKDIR.value) / f"{case}/seed={seed}"


def train(case: str, fields: dict, seed: int) -> bool:
  workdir = run_dir(case, seed)
  if (workdir / "summary.json").exists():
    return True
  print(f"{case}, seed {seed}", flush=True)
  path = ROOT / f"configs/mnist_{case.split('/')[0]}.py"
  config = command_line.load_config(path, "sparse_momentum")
  config.update(fields, seed=seed, log_every=540)
  if _EPOCHS.value:
    config.num_epochs = _EPOCHS.value
  return training.train_and_evaluate(config, workdir).finished


def rows() -> list[dict]:
  table = []
  for case in cases():
    dirs = [run_dir(case, seed) for seed in range(seeds(case))]
    done = [d for d in dirs if (d / "summary.json").exists()]
    if not done:
      continue
    paper, sem, name = PAPER["/".join(case.split("/")[:2])]
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
  chosen = cases()
  if not chosen:
    raise SystemExit(f"--cases must match a case, got {_CASES.value!r}")
  # Seeds are the outer loop, so that every case has a first run early.
  for seed in range(max(map(seeds, chosen))):
    for case, fields in chosen.items():
      wanted = not _WRITE_ONLY.value and seed < seeds(case)
      if wanted and not train(case, fields, seed):
        sys.exit(130)
  results.write_results(_OUT.value, "mnist_sparse_momentum", rows())
  print(f"Wrote {_OUT.value}.")


if __name__ == "__main__":
  command_line.run(main)
