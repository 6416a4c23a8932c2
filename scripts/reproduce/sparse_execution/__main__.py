"""Compares block-sparse networks with dense networks of equal cost.

  python -m scripts.reproduce.sparse_execution --workdir=runs/quality
  python -m scripts.reproduce.sparse_execution --workdir=runs/quality --tasks=text

Tasks: mnist and fashion_mnist by configs/mnist_wide.py, an MLP of three layers of 2048
at density 0.1; text by configs/lm_block.py, a byte transformer of width 512. Per task,
five networks:

  blocks        blocks of live weights, whose products skip the dead blocks
  dense         the same network, dense
  narrow        a dense network with as many multiply-adds as `blocks`
  unstructured  the same density without blocks, with dense products
  short         the dense network, stopped after the wall-clock time of `blocks`

The learning rate of each network is chosen on validation images, by one run of seed 100
per rate; then three seeds are trained. `short` takes the rate of `dense` and as many
epochs as fit; it is measured, not assumed, so run nothing else meanwhile. The table is
results/sparse_execution.json: test error (loss, for text) and seconds per run. On two
CPU cores mnist and fashion_mnist take about an hour together. Finished runs are not
repeated, and a stopped run resumes.
"""

import math
import pathlib
import statistics
import sys
from typing import Any

from absl import flags, logging

from scripts import ROOT
from sparsejax import training
from sparsejax.experiments import command_line, results
from sparsejax.training import current_commit

CONFIGS = {"mnist": "mnist_wide", "fashion_mnist": "mnist_wide", "text": "lm_block"}
NETWORKS = ("blocks", "dense", "narrow", "unstructured", "short")
RATES = {"mnist_wide": (0.02, 0.05, 0.1), "lm_block": (5e-4, 1e-3, 2e-3)}
# Multiply-adds per example in the layers of mnist_wide: 784 x 2048 dense, twice a tenth
# of 2048 x 2048, and 2048 x 10. Three dense layers of 928 have as many. The transformer
# of width 192 has a tenth of the weights of width 512 in its blocks, rounded up to
# whole heads.
NARROW: dict[str, dict[str, Any]] = {
  "mnist_wide": {"features": (928, 928, 928)},
  "lm_block": {"width": 192, "heads": 8},
}
TUNING_SEED = 100

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
_OUT = flags.DEFINE_string(
  "out", str(ROOT / "results/sparse_execution.json"), "The results file to write."
)
_TASKS = flags.DEFINE_multi_enum(
  "tasks", ["mnist", "fashion_mnist"], list(CONFIGS), "Tasks to run."
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds per network.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer(
  "num_epochs", None, "Epochs per run; default: the config's."
)
_WRITE_ONLY = flags.DEFINE_bool(
  "write_only", False, "Train nothing; write the results."
)


def config_of(task: str, network: str, rate: float, seed: int, epochs: int | None):
  """Returns the config of one run."""
  name = CONFIGS[task]
  variant = "dense" if network in ("dense", "narrow", "short") else "rigl"
  config = command_line.load_config(ROOT / f"configs/{name}.py", variant)
  config.update(dataset=task, learning_rate=rate, seed=seed)
  if network == "unstructured":
    config.update(structure="any", execution="dense")
  if network == "narrow":
    config.model_kwargs.update(NARROW[name])
  if epochs:
    config.num_epochs = epochs
  return config


def train(
  task: str, network: str, rate: float, seed: int, epochs: int | None
) -> dict[str, Any]:
  """Trains one run, unless it is finished, and returns its summary."""
  workdir = pathlib.Path(_WORKDIR.value) / task / network / f"rate={rate:g}/seed={seed}"
  if not (workdir / "summary.json").exists():
    if _WRITE_ONLY.value:
      return {}
    print(f"{task}, {network}, rate {rate:g}, seed {seed}", flush=True)
    result = training.train_and_evaluate(
      config_of(task, network, rate, seed, epochs), workdir, summarize=False
    )
    if not result.finished:
      sys.exit(130)
    (workdir / "commit").write_text(current_commit(12) or "")
  summary = training.read_json(workdir / "summary.json")
  records = training.read_metrics(workdir)
  losses = [r["validation_loss"] for r in records if "validation_loss" in r]
  commit = workdir / "commit"
  return summary | {
    "validation_loss": math.inf if losses[-1] is None else losses[-1],
    "commit": commit.read_text() if commit.exists() else "",
  }


def tuned_rate(task: str, network: str) -> float | None:
  """Returns the rate with the lowest validation loss at the end of a run."""
  found = {}
  for rate in RATES[CONFIGS[task]]:
    summary = train(task, network, rate, TUNING_SEED, _EPOCHS.value)
    if summary:
      found[rate] = summary["validation_loss"]
  return min(found, key=lambda rate: found[rate]) if found else None


def measure(task: str) -> list[dict]:
  """Trains and measures the networks of a task."""
  rows, seconds, rates = [], {}, {}
  for network in NETWORKS:
    epochs = _EPOCHS.value
    if network == "short":
      # As many epochs of the dense network as take the time of the sparse one.
      if "dense" not in seconds or "blocks" not in seconds:
        continue
      full = config_of(task, "dense", rates["dense"], 0, epochs).num_epochs
      share = seconds["blocks"] / seconds["dense"]
      rate, epochs = rates["dense"], max(1, round(full * share))
    else:
      rate = tuned_rate(task, network)
      if rate is None:
        continue
    runs = [train(task, network, rate, seed, epochs) for seed in range(_SEEDS.value)]
    runs = [run for run in runs if run]
    if not runs:
      continue
    rates[network] = rate
    seconds[network] = statistics.median(run["seconds"] for run in runs)
    note = (
      f"learning rate {rate:g}, chosen of {RATES[CONFIGS[task]]} by the validation loss"
      f" of one other seed; {runs[0]['step']} steps; trained at "
      + ", ".join(sorted({run["commit"] for run in runs}))
    )
    for metric in ("test_error_percent", "test_loss", "seconds"):
      values = [run[metric] for run in runs]
      values = [v[0] if isinstance(v, list) else v for v in values]
      rows.append(results.row(f"{task}/{network}", metric, values, note=note))
  return rows


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  for task in _TASKS.value:
    rows = results.merge_with_existing(measure(task), _OUT.value)
    if rows:
      results.write_results(_OUT.value, "sparse_execution", rows)
      print(f"Wrote {_OUT.value}.")


if __name__ == "__main__":
  command_line.run(main)
