"""Compares block-sparse networks with dense networks of equal cost.

  python -m scripts.reproduce.sparse_execution --workdir=runs/quality --part=train
  python -m scripts.reproduce.sparse_execution --workdir=runs/quality --part=time
  python -m scripts.reproduce.sparse_execution --workdir=runs/quality

Tasks: mnist and fashion_mnist by configs/mnist_wide.py, an MLP of three layers of 2048
at density 0.1; text by configs/lm_block.py, a byte transformer of width 512. Per task,
five networks:

  blocks        blocks of live weights, whose products skip the dead blocks
  dense         the same network, dense
  narrow        a dense network with as many multiply-adds as `blocks`
  unstructured  the same density without blocks, with dense products; not for text,
                where it would take as long as dense
  short         the dense network, trained for the wall-clock time of `blocks`

The learning rate of each network is chosen on validation images, by one run of seed 100
per rate, which may diverge; then three seeds are trained. fashion_mnist takes the rates
of mnist.

--part=train trains all but `short`; the machine may be busy. --part=time times the
steps of the networks in turns, in one process, over one period of mask updates, and
needs an idle machine for some minutes. Without --part both are done, unless they were,
then `short` is trained, and results/sparse_execution.json is written: test error and
loss, seconds per step, and seconds of training as steps times seconds per step.
Finished runs are not repeated, and a stopped run resumes.

--tasks=losses compares the losses of 1,000 steps of a smaller MLP with sparse and with
dense products: the same masks and seed, and another seed for scale.
"""

import functools
import math
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from scripts import ROOT
from sparsejax import training
from sparsejax.experiments import command_line, results
from sparsejax.training import read_json, write_text

CONFIGS = {"mnist": "mnist_wide", "fashion_mnist": "mnist_wide", "text": "lm_block"}
NETWORKS = {
  "mnist_wide": ("blocks", "dense", "narrow", "unstructured"),
  "lm_block": ("blocks", "dense", "narrow"),
}
RATES = {"mnist_wide": (0.05, 0.1, 0.2, 0.4), "lm_block": (5e-4, 1e-3, 2e-3, 4e-3)}
# Multiply-adds per example in the layers of mnist_wide: 784 x 2048 dense, twice a tenth
# of 2048 x 2048, and 2048 x 10. Three dense layers of 928 have as many. The transformer
# of width 192 has a tenth of the weights of width 512 in its blocks, rounded up to
# whole heads.
NARROW: dict[str, dict[str, Any]] = {
  "mnist_wide": {"features": (928, 928, 928)},
  "lm_block": {"width": 192, "heads": 8},
}
TUNING_SEED = 100
TUNED_ON = {"fashion_mnist": "mnist"}  # else on the task itself
# The steps of the networks are timed in turns of so many steps, over one period of mask
# updates.
TURN = 20
# The losses of two ways of computing the same products are compared per so many steps.
LOSS_STEPS, LOSS_EVERY = 1000, 100

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
_OUT = flags.DEFINE_string(
  "out", str(ROOT / "results/sparse_execution.json"), "The results file to write."
)
_TASKS = flags.DEFINE_multi_enum(
  "tasks", ["mnist", "fashion_mnist"], [*CONFIGS, "losses"], "Tasks to run."
)
_PART = flags.DEFINE_enum(
  "part", "all", ["all", "train", "time"], "Train, time the steps, or all the rest."
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds per network.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer(
  "num_epochs", None, "Epochs per run; default: the config's."
)


def config_of(task: str, network: str, rate: float, seed: int, steps: int = 0):
  """Returns the config of one run; `steps` is 0 for all epochs."""
  name = CONFIGS[task]
  variant = "dense" if network in ("dense", "narrow", "short") else "rigl"
  config = command_line.load_config(ROOT / f"configs/{name}.py", variant)
  config.update(dataset=task, learning_rate=rate, seed=seed, num_steps=steps)
  if network == "unstructured":
    config.update(structure="any", execution="dense")
  if network == "narrow":
    config.model_kwargs.update(NARROW[name])
  if _EPOCHS.value:
    config.num_epochs = _EPOCHS.value
  return config


def run_folder(task: str, network: str, rate: float, seed: int) -> pathlib.Path:
  """Returns the folder of one run."""
  return pathlib.Path(_WORKDIR.value) / task / network / f"rate={rate:g}/seed={seed}"


def train(config: Any, folder: pathlib.Path) -> dict[str, Any]:
  """Trains a run, unless it is finished; returns its summary and validation loss.

  The validation loss of a run that diverged is infinite.
  """
  diverged = folder / "diverged"
  if not ((folder / "summary.json").exists() or diverged.exists()):
    print(folder, flush=True)
    try:
      result = training.train_and_evaluate(config, folder, summarize=False)
    except training.NonFiniteError as e:
      write_text(diverged, f"{e}\n")
    else:
      if not result.finished:
        sys.exit(130)
  if diverged.exists():
    return {"validation_loss": math.inf}
  records = training.read_metrics(folder)
  losses = [r["validation_loss"] for r in records if "validation_loss" in r]
  last = math.inf if losses[-1] is None else losses[-1]
  return read_json(folder / "summary.json") | {"validation_loss": last}


def trained(
  task: str, network: str, steps: int = 0
) -> tuple[float, list[dict[str, Any]], list[pathlib.Path]]:
  """Tunes the learning rate, then trains all seeds at the best.

  Args:
    task: a name of `CONFIGS`.
    network: a name listed above.
    steps: of each run; 0 for all epochs.

  Returns:
    The rate with the lowest validation loss, and the summaries and folders of the runs.
  """

  def run(task, rate, seed):
    config = config_of(task, network, rate, seed, steps)
    return train(config, run_folder(task, network, rate, seed))

  tuned = functools.partial(run, TUNED_ON.get(task, task), seed=TUNING_SEED)
  rates = RATES[CONFIGS[task]]
  best = min(rates, key=lambda rate: tuned(rate=rate)["validation_loss"])
  seeds = range(_SEEDS.value)
  runs = [run(task, best, seed) for seed in seeds]
  return best, runs, [run_folder(task, network, best, seed) for seed in seeds]


def timing(task: str) -> dict[str, Any]:
  """Times the steps of all networks in turns, and keeps the times in the workdir.

  Args:
    task: a name of `CONFIGS`.

  Returns:
    `{"seconds_per_step": {network: seconds}, "run": environment}`.
  """
  path = pathlib.Path(_WORKDIR.value) / CONFIGS[task] / "timing.json"
  if path.exists():
    return read_json(path)
  networks = NETWORKS[CONFIGS[task]]
  turns = {network: _stepper(task, network) for network in networks}
  every = config_of(task, "blocks", 0.0, 0).update_every
  seconds: dict[str, float] = dict.fromkeys(networks, 0.0)
  for number in range(every // TURN + 1):
    for network, turn in turns.items():
      start = time.perf_counter()
      turn()
      # The first turn compiles.
      seconds[network] += (time.perf_counter() - start) * (number > 0)
  seconds = {
    network: total / (every // TURN * TURN) for network, total in seconds.items()
  }
  found = {"seconds_per_step": seconds, "run": training.environment()}
  path.parent.mkdir(parents=True, exist_ok=True)
  write_text(path, training.json_text(found, indent=1))
  return found


def _stepper(task: str, network: str):
  """Returns a function that trains a network for `TURN` steps more, on one epoch."""
  run = training.prepare(config_of(task, network, RATES[CONFIGS[task]][0], 0))
  examples = training.place_splits(run.dataset, run.layout)[0]
  state = training.initial_state(run, examples)
  order = run.program.order(state)

  def turn():
    nonlocal state
    stop = int(state.step) + TURN
    totals = training.no_totals(state.key.shape)
    state, _ = jax.block_until_ready(
      run.program.run(state, examples, order, np.int32(stop), totals)
    )

  return turn


def measure(task: str) -> list[dict]:
  """Trains and times the networks of a task."""
  if _PART.value != "time":
    found = {name: trained(task, name) for name in NETWORKS[CONFIGS[task]]}
  if _PART.value == "train":
    return []
  timed = timing(task)
  seconds = timed["seconds_per_step"]
  if _PART.value == "time":
    return []
  # As many steps of the dense network as take the time of the sparse one.
  steps = found["blocks"][1][0]["step"] * seconds["blocks"] / seconds["dense"]
  found["short"] = trained(task, "short", round(steps))
  seconds["short"] = seconds["dense"]
  rows = []
  for network, (rate, runs, folders) in found.items():
    steps = runs[0]["step"]
    note = (
      f"learning rate {rate:g}, chosen of {RATES[CONFIGS[task]]} by the validation loss"
      f" of one other seed on {TUNED_ON.get(task, task)}; {steps} steps"
    )
    row = functools.partial(
      results.row, f"{task}/{network}", note=note, runs=results.trained_in(folders)
    )
    rows += [
      row(metric, [np.ravel(run[metric])[0] for run in runs])
      for metric in ("test_error_percent", "test_loss")
    ]
    note = f"steps of all networks in turns, mask updates counted; {steps} steps"
    row = functools.partial(
      results.row, f"{task}/{network}", note=note, runs=[timed["run"]]
    )
    rows.append(row("milliseconds_per_step", 1e3 * seconds[network]))
    rows.append(row("seconds", steps * seconds[network]))
  return rows


def losses() -> list[dict]:
  """Compares the losses of training by sparse and by dense products."""

  # The mean training losses of consecutive intervals.
  def run(execution: str, seed: int) -> tuple[np.ndarray, pathlib.Path]:
    config = config_of("mnist", "blocks", 0.05, seed, LOSS_STEPS)
    config.update(execution=execution, block=64, log_every=LOSS_EVERY)
    config.num_epochs = math.ceil(LOSS_STEPS / 108)
    config.model_kwargs.update(features=(512, 512, 512))
    folder = pathlib.Path(_WORKDIR.value) / "losses" / execution / f"seed={seed}"
    train(config, folder)
    found = [
      r["train_loss"] for r in training.read_metrics(folder) if "train_loss" in r
    ]
    return np.array(found), folder

  runs = {
    (execution, seed): run(execution, seed)
    for execution in ("sparse", "dense")
    for seed in (0, 1)
  }
  made = results.trained_in([folder for _, folder in runs.values()])
  value = {key: found for key, (found, _) in runs.items()}
  note = (
    f"MLP of 3 x 512, blocks of 64, density 0.1, RigL, {LOSS_STEPS} steps; largest "
    "difference of the mean training losses of an interval between two records"
  )

  def row(metric: str, pairs: Sequence[tuple]) -> dict:
    gaps = [float(np.max(np.abs(value[a] - value[b]))) for a, b in pairs]
    return results.row("losses/mlp512x3", metric, gaps, note=note, runs=made)

  return [
    row(
      "sparse_against_dense_products", [(("sparse", s), ("dense", s)) for s in (0, 1)]
    ),
    row("between_two_seeds", [((e, 0), (e, 1)) for e in ("sparse", "dense")]),
  ]


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  for task in _TASKS.value:
    rows = losses() if task == "losses" else measure(task)
    if rows:
      rows = results.merge_with_existing(rows, _OUT.value)
      results.write_results(_OUT.value, "sparse_execution", rows)
      print(f"Wrote {_OUT.value}.")


if __name__ == "__main__":
  command_line.run(main)
