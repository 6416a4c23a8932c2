r"""Trains supermasks of random networks and writes results/supermask.json.

  python -m scripts.reproduce.supermasks --workdir=runs/supermask

The cases are: edge-popup on LeNet-300-100 (MNIST) over the fraction kept (k) and on
Conv-4, by configs/*_supermask.py with fewer epochs; Zhou et al.'s Bernoulli supermask,
and their masks by magnitude and sign, which train no scores; and the share of a step's
time that top-k selection takes. The script also plots accuracy against k. It takes half
an hour on one idle CPU core, most of it for Conv-4. A run with a record is not
repeated; several processes may share the workdir with different --parts. --write_only
writes the table from the records; rows of cases without a record are left unchanged.

All densities and initializations of a network are trained by one compiled program, each
as one member of a population (`lottery.train_population`); `scripts/train.py` trains a
single one by the same config.
"""

import json
import pathlib
from typing import Any

import numpy as np
from absl import flags, logging

from scripts import ROOT
from scripts.reproduce import plots
from scripts.reproduce.supermasks import measurements
from sparsejax.analysis import COLORS, DISPLAY_NAMES
from sparsejax.experiments import command_line, results
from sparsejax.training import environment

KEPT = (0.5, 0.3, 0.7, 0.1, 0.9, 0.2, 0.4, 0.6, 0.8)
INITIALIZATIONS = ("signed_constant", "kaiming_normal")
PARTS = ("lenet300", "heuristics", "bernoulli", "conv4", "scaled", "selection")
SEEDS, EPOCHS = 3, 6  # of LeNet-300-100
HEURISTIC_SEEDS = 5
CONV_IMAGES, CONV_KEPT = 6_000, (0.5, 0.3, 0.7, 0.1, 0.9)

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
_OUT = flags.DEFINE_string(
  "out", str(ROOT / "results/supermask.json"), "The results file to write."
)
_PLOTS = flags.DEFINE_string("plots", "plots", "Folder of the plot.")
_PARTS = flags.DEFINE_multi_enum("parts", list(PARTS), list(PARTS), "Parts to run.")
_WRITE_ONLY = flags.DEFINE_bool(
  "write_only", False, "Train nothing; write the results."
)


def get_config(name: str, variant: str):
  path = ROOT / f"configs/{name}.py"
  return command_line.load_config(path, variant)


def cases() -> dict[str, tuple[str, Any]]:
  """Returns the part and config of each case, in the order in which they are run."""
  found = {}

  def lenet(part, name, variant):
    config = get_config("mnist_lenet300_supermask", variant)
    config.update(num_epochs=EPOCHS)
    found[f"lenet300/{name}"] = part, config

  for kept in KEPT:
    for init in INITIALIZATIONS:
      lenet("lenet300", f"{init}/kept={kept:g}", f"{init},{kept}")
  for kept in (0.5, 0.3):
    for init in INITIALIZATIONS:
      lenet("scaled", f"{init}_scaled/kept={kept:g}", f"{init},scaled,{kept}")
  lenet("bernoulli", "signed_constant/bernoulli", "bernoulli")
  for kept in CONV_KEPT:
    for init in INITIALIZATIONS:
      config = get_config("cifar10_conv_supermask", f"{init},{kept}")
      config.update(dataset="mnist", augmentation="none", num_epochs=1)
      config.update(validation_fraction=1 - CONV_IMAGES / 60_000)
      found[f"conv4_mnist/{init}/kept={kept:g}"] = "conv4", config
  return found


def record(case: str, seed: int) -> pathlib.Path:
  return pathlib.Path(_WORKDIR.value) / case / f"seed={seed}.json"


def train(part: str) -> None:
  """Trains the cases of a part that have no record yet, one seed at a time."""
  for seed in range(1 if part == "conv4" else SEEDS):
    for case, (its_part, config) in cases().items():
      path = record(case, seed)
      if its_part != part or path.exists():
        continue
      print(f"{case}, seed {seed}", end=" ", flush=True)
      path.parent.mkdir(parents=True, exist_ok=True)
      found = measurements.train(config, seed, path.with_suffix(".npz"))
      print(f"{found}", flush=True)
      path.write_text(json.dumps({**found, "run": environment()}))


def once(part: str, function) -> None:
  """Runs one of the parts that are no training runs, unless it is done."""
  path = pathlib.Path(_WORKDIR.value) / f"{part}.json"
  if not path.exists():
    print(part, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = [{**row, "runs": [environment()]} for row in function()]
    path.write_text(json.dumps(made))


def records(case: str) -> list[dict]:
  paths = [record(case, seed) for seed in range(SEEDS)]
  return [json.loads(path.read_text()) for path in paths if path.exists()]


def chosen_rows() -> list[dict]:
  """Returns rows at the fraction kept that is best on the validation images."""
  table = []
  for init in INITIALIZATIONS:
    found = {kept: records(f"lenet300/{init}/kept={kept:g}") for kept in KEPT}
    if not all(len(members) == SEEDS for members in found.values()):
      continue
    means = {
      kept: np.mean([member["validation_accuracy_percent"] for member in members])
      for kept, members in found.items()
    }
    best = max(means, key=lambda kept: means[kept])
    table.append(
      results.row(
        f"lenet300/{init}/best_kept",
        "test_accuracy_percent",
        [member["test_accuracy_percent"] for member in found[best]],
        note=f"kept = {best:g}, the best of {', '.join(f'{k:g}' for k in sorted(KEPT))}"
        f" by the mean on validation images, {means[best]:.2f} %",
        runs=[member["run"] for member in found[best]],
      )
    )
  return table


def rows() -> list[dict]:
  table = []
  for case, (part, config) in cases().items():
    found = records(case)
    if not found:
      continue
    examples = CONV_IMAGES if part == "conv4" else 54_000
    note = (
      f"MNIST, {config.num_epochs} epochs of {examples:,} images in batches of"
      f" {config.batch_size}; weights unchanged (SHA-256)"
    )
    if part == "bernoulli":
      note += f"; each the mean over {measurements.DRAWS} draws of the masks"
    metrics = ["test_accuracy_percent"]
    metrics += ["live_percent"] * (part == "bernoulli")  # elsewhere it is given
    metrics += ["file_bytes_ratio"] * (case.endswith("signed_constant/kept=0.5"))
    for metric in metrics:
      values = [one[metric] for one in found]
      runs = [one["run"] for one in found]
      table.append(results.row(case, metric, values, note=note, runs=runs))
  table += chosen_rows()
  for part in ("heuristics", "selection"):
    path = pathlib.Path(_WORKDIR.value) / f"{part}.json"
    if path.exists():
      table += [results.row(**row) for row in json.loads(path.read_text())]
  whole = results.merge_with_existing(table, _OUT.value)
  return sorted(whole, key=lambda row: row["case"])


def plot(table: list[dict]) -> None:
  found = {r["case"]: r for r in table if r["metric"] == "test_accuracy_percent"}
  models = ("lenet300", "conv4_mnist")
  figure, panels = plots.axes(1, len(models))
  for axis, model in zip(panels, models, strict=True):
    axis.set_visible(any(case.startswith(model) for case in found))
    for init, color in zip(INITIALIZATIONS, COLORS, strict=False):
      kept = [k for k in sorted(KEPT) if f"{model}/{init}/kept={k:g}" in found]
      chosen = [found[f"{model}/{init}/kept={k:g}"] for k in kept]
      values = [r["values"] for r in chosen]
      label = init.replace("_", " ")
      percent = 100 * np.array(kept)
      axis.plot(
        percent, [np.mean(v) for v in values], "o-", ms=4, color=color, label=label
      )
      low, high = [min(v) for v in values], [max(v) for v in values]
      axis.fill_between(percent, low, high, alpha=0.15, lw=0, color=color)
    axis.set(xlabel="weights kept, %", ylabel="test accuracy, %", xlim=(0, 100))
    axis.set_title(f"{DISPLAY_NAMES[model]} on MNIST, weights never trained")
    axis.legend(loc="lower center")
  plots.save(figure, _PLOTS.value, "supermask")


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  for part in () if _WRITE_ONLY.value else _PARTS.value:
    if part == "selection":
      once(part, measurements.selection)
    elif part == "heuristics":
      once(part, lambda: measurements.heuristics(HEURISTIC_SEEDS, EPOCHS))
    else:
      train(part)
  table = rows()
  results.write_results(_OUT.value, "supermask", table)
  plot(table)
  print(f"Wrote {_OUT.value}.")


if __name__ == "__main__":
  command_line.run(main)
