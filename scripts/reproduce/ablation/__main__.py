"""Varies the parts and the settings of sparse momentum, on MNIST.

  python -m scripts.reproduce.ablation --workdir=runs/ablation

The table is results/ablation.json. The network is LeNet-300-100 by the recipe of
configs/mnist_lenet300.py in 20 epochs instead of 100, its steps of the learning rate
after a fifth of the time. Each case trains three seeds in one vectorized run, which
takes about three minutes of one core. Finished runs are not repeated, a stopped run
resumes, and several processes may share the workdir with different --cases.
--write_only writes the table from finished runs; rows of cases without a run in the
workdir are left unchanged.
"""

import json
import pathlib
import re
import sys

from absl import flags, logging

from scripts import ROOT
from sparsejax import training
from sparsejax.experiments import command_line, results

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
_OUT = flags.DEFINE_string(
  "out", str(ROOT / "results/ablation.json"), "The results file to write."
)
_CASES = flags.DEFINE_string(
  "cases", "", "A regular expression of cases; default: all."
)
_NUM_EPOCHS = flags.DEFINE_integer("num_epochs", 20, "Epochs per run.")
_WRITE_ONLY = flags.DEFINE_bool(
  "write_only", False, "Train nothing; write the results."
)

SEEDS = 3
GROWTH = ("momentum", "random")
REDISTRIBUTION = ("momentum", "magnitude", "nonzeros", None)
DROP_FRACTIONS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
MOMENTA = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def cases() -> dict[str, dict]:
  """Returns the fields of the config by case; the recipe's own are repeated in each."""
  found = {}
  for density in (0.01, 0.05):
    for growth in GROWTH:
      for redistribution in REDISTRIBUTION:
        name = f"growth={growth}/redistribution={redistribution or 'none'}"
        found[f"lenet300/density={density:g}/{name}"] = {
          "density": density,
          "method_kwargs": {"grow_score": growth, "redistribute_by": redistribution},
        }
  for fraction in DROP_FRACTIONS:
    found[f"lenet300/density=0.05/drop_fraction={fraction:g}"] = {
      "drop_fraction": fraction
    }
  for momentum in MOMENTA:
    found[f"lenet300/density=0.05/momentum={momentum:g}"] = {"momentum": momentum}
    found[f"lenet300/dense/momentum={momentum:g}"] = {
      "momentum": momentum,
      "method": "dense",
      "density": 1.0,
    }
  return {name: f for name, f in found.items() if re.search(_CASES.value, name)}


def run_dir(case: str) -> pathlib.Path:
  return pathlib.Path(_WORKDIR.value) / case


def train(case: str, fields: dict) -> bool:
  """Trains the seeds of a case and returns whether they are finished."""
  if (run_dir(case) / "summary.json").exists():
    return True
  print(case, flush=True)
  path = ROOT / "configs/mnist_lenet300.py"
  config = command_line.load_config(path, fields.get("method", "sparse_momentum"))
  # The learning rate decays as often as in the full recipe.
  share = _NUM_EPOCHS.value / config.num_epochs
  config.lr_decay_every = round(config.lr_decay_every * share)
  config.update(num_epochs=_NUM_EPOCHS.value, num_seeds=SEEDS, log_every=540)
  config.update(fields)
  return training.train_and_evaluate(config, run_dir(case), verbose=False).finished


def rows() -> list[dict]:
  table = []
  for case in cases():
    file = run_dir(case) / "summary.json"
    if not file.exists():
      continue
    summary = json.loads(file.read_text())
    table.append(
      results.row(
        case=case,
        metric="test_error_percent",
        values=summary["test_error_percent"],
        note=f"{summary['step']} steps; seeds 0 to {SEEDS - 1}",
        runs=results.trained_in([run_dir(case)]),
      )
    )
  return results.merge_with_existing(table, _OUT.value)


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  if not cases():
    raise SystemExit(f"--cases must match a case, got {_CASES.value!r}")
  for case, fields in cases().items():
    if not _WRITE_ONLY.value and not train(case, fields):
      sys.exit(130)
  results.write_results(_OUT.value, "ablation", rows())
  print(f"Wrote {_OUT.value}.")


if __name__ == "__main__":
  command_line.run(main)
