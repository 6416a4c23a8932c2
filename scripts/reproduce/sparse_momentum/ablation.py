"""Varies the parts and the settings of sparse momentum, on MNIST.

  python -m scripts.reproduce.sparse_momentum.ablation --workdir=runs/ablation

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
from typing import Any

from absl import flags, logging

from scripts import ROOT
from scripts.reproduce import plots
from sparsejax import training
from sparsejax.analysis import COLORS
from sparsejax.experiments import command_line, results

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
_OUT = flags.DEFINE_string(
  "out", str(ROOT / "results/ablation.json"), "The results file to write."
)
_CASES = flags.DEFINE_string(
  "cases", "", "A regular expression of cases; default: all."
)
_NUM_EPOCHS = flags.DEFINE_integer("num_epochs", 20, "Epochs per run.")
_PLOTS = flags.DEFINE_string("plots", "plots", "Folder of the figure.")
_WRITE_ONLY = flags.DEFINE_bool(
  "write_only", False, "Train nothing; write the results."
)

SEEDS = 3
_DIVERGED = "diverged.json"  # in the folder of a run
GROWTH = ("momentum", "random")
REDISTRIBUTION = ("momentum", "magnitude", "nonzeros", None)
DROP_FRACTIONS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
MOMENTA = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def cases(pattern: str = "") -> dict[str, dict]:
  """Returns the fields that differ from the recipe, by case."""
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
  return {name: f for name, f in found.items() if re.search(pattern, name)}


def run_dir(case: str) -> pathlib.Path:
  return pathlib.Path(_WORKDIR.value) / case


def make_config(fields: dict, num_epochs: int) -> Any:
  """Returns the config of a case."""
  path = ROOT / "configs/mnist_lenet300.py"
  config = command_line.load_config(path, fields.get("method", "sparse_momentum"))
  # The learning rate decays as often as in the full recipe.
  share = num_epochs / config.num_epochs
  config.lr_decay_every = round(config.lr_decay_every * share)
  config.update(num_epochs=num_epochs, num_seeds=SEEDS, log_every=540)
  with config.unlocked():  # for arguments of the method
    config.update(fields)
  return config


def train(case: str, fields: dict) -> bool:
  """Trains the seeds of a case and returns whether they are finished, or diverged."""
  folder = run_dir(case)
  if any((folder / name).exists() for name in ("summary.json", _DIVERGED)):
    return True
  print(case, flush=True)
  config = make_config(fields, _NUM_EPOCHS.value)
  try:
    return training.train_and_evaluate(config, folder, verbose=False).finished
  except training.NonFiniteError as error:
    # A recipe that diverges is a result too.
    (folder / _DIVERGED).write_text(json.dumps({"message": str(error)}))
    print(f"{case} diverged: {error}", flush=True)
    return True


def rows() -> list[dict]:
  table = []
  for case in cases(_CASES.value):
    file, diverged = run_dir(case) / "summary.json", run_dir(case) / _DIVERGED
    if file.exists():
      summary = json.loads(file.read_text())
      metric, values = "test_error_percent", summary["test_error_percent"]
      note = f"{summary['step']} steps; seeds 0 to {SEEDS - 1}"
    elif diverged.exists():
      metric, values = "diverged", 1.0
      note = json.loads(diverged.read_text())["message"]
    else:
      continue
    runs = results.trained_in([run_dir(case)])
    table.append(results.row(case, metric, values, note=note, runs=runs))
  return results.merge_with_existing(table, _OUT.value)


def plot(table: list[dict]) -> None:
  """Draws the error over the drop fraction and the momentum, with standard errors."""
  found = {r["case"]: r for r in table if r["metric"] == "test_error_percent"}
  diverged = {r["case"] for r in table if r["metric"] == "diverged"}
  sparse, dense = "lenet300/density=0.05", "lenet300/dense"
  series = (
    (0, "5 % of the weights", f"{sparse}/drop_fraction=", DROP_FRACTIONS),
    (1, "5 % of the weights", f"{sparse}/momentum=", MOMENTA),
    (1, "dense", f"{dense}/momentum=", MOMENTA),
  )
  known = {*found, *diverged}
  if not all(f"{case}{x:g}" in known for _, _, case, xs in series for x in xs):
    return
  figure, axes = plots.axes(1, 2, width=4.4, height=3.4)
  for place, label, case, xs in series:
    xs = [x for x in xs if f"{case}{x:g}" in found]
    rows = [found[f"{case}{x:g}"] for x in xs]
    axes[place].errorbar(
      xs,
      [row["mean"] for row in rows],
      [row["sem"] for row in rows],
      fmt="o-",
      ms=4,
      capsize=2,
      color=COLORS[2 if label == "dense" else 0],
      label=label,
    )
  axes[0].set(xlabel="drop fraction", ylabel="test error, %")
  axes[1].set(xlabel="momentum", ylabel="test error, %")
  axes[0].set_ylim(axes[1].get_ylim())  # so that the panels can be compared
  for axis in axes:
    axis.legend()
  plots.save(figure, _PLOTS.value, "ablation")


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  chosen = cases(_CASES.value)
  if not chosen:
    raise SystemExit(f"--cases must match a case, got {_CASES.value!r}")
  for case, fields in chosen.items():
    if not _WRITE_ONLY.value and not train(case, fields):
      sys.exit(130)
  table = rows()
  results.write_results(_OUT.value, "ablation", table)
  plot(table)
  print(f"Wrote {_OUT.value}.")


if __name__ == "__main__":
  command_line.run(main)
