r"""Writes results/lottery.json, on lottery tickets of LeNet-300-100 on MNIST.

  python scripts/lottery.py --config=configs/mnist_lenet300_lottery.py --workdir=runs/lt
  python scripts/instability.py --config=configs/mnist_lenet300_lottery.py \
    --workdir=runs/lt --steps=0 --config.train.num_seeds=5
  python -m scripts.reproduce.lottery_tickets --workdir=runs/lt \
    --resnet_workdir=runs/wrn10

The first command trains (half an hour on one idle CPU core; three hours for the steps
of the paper, --config.train.num_epochs=55), the second adds the instability analysis,
and the third writes the finished results; rows of another number of steps stay in the
file. The instability of a residual network comes from configs/cifar10_wrn10_lottery.py.
Differences from the dense network and from reinitialized tickets, and ratios to them,
are computed per seed, so that their standard errors contain the variance of both.
"""

import functools
import json
import pathlib
import sys

import numpy as np
from absl import flags

from scripts import ROOT
from scripts.reproduce.lottery_tickets import pairs
from sparsejax.experiments import command_line, results
from sparsejax.experiments.lottery import (
  Arm,
  Outcome,
  read_level_metrics,
  read_outcome,
  write_report,
)
from sparsejax.training import TrainingError

SOURCE = "Frankle & Carbin 2019, section 2, figures 3 and 4"
CONFIG_STEPS = 15_572  # 916 steps in each of 17 epochs
# (level, metric, against the control): value of the paper.
PAPER = {
  (7, "early_stop_reduction_percent", False): 38.0,
  (9, "accuracy_gain_points", False): 0.3,
  (15, "accuracy_gain_points", False): 0.0,
  (7, "early_stop_speedup", True): 2.51,
  (7, "accuracy_gain_points", True): 0.5,
}

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory of the experiment.", required=True
)
_RESNET = flags.DEFINE_string(
  "resnet_workdir", None, "Directory of the instability analysis of a residual network."
)
_OUT = flags.DEFINE_string(
  "out", str(ROOT / "results/lottery.json"), "The results file to write."
)


def network(outcome: Outcome) -> str:
  # Cases name the steps unless they are those of the config.
  steps = "" if outcome.steps == CONFIG_STEPS else f"/steps={outcome.steps}"
  return f"lenet300{steps}"


def case(outcome: Outcome, kind: str) -> str:
  return f"{network(outcome)}/weights={outcome.density.mean():.3f}/{kind}"


def own_rows(arm: Arm, o: Outcome, make) -> list[dict]:
  """Returns the rows of one arm."""
  name = f"{network(o)}/dense" if arm.kind == "dense" else case(o, arm.kind)
  return [
    make(name, metric, np.asarray(values, float).tolist())
    for metric, values in (
      ("early_stop_step", o.early_stop),
      ("test_accuracy_percent", o.accuracy),
      ("last_test_accuracy_percent", o.final_accuracy),
    )
  ]


def compared(name, ticket, other, level, control: bool, note, make) -> list[dict]:
  """Returns the rows of a ticket against the dense network or a control."""
  table = []
  for metric, values in pairs.gains(ticket, other, control).items():
    # The published values are those of tickets found iteratively.
    known = {} if name.endswith("one_shot") else PAPER
    paper = known.get((level, metric, control))
    better = "later" if metric.startswith("early") else "worse"
    neutral = 1 if metric == "early_stop_speedup" else 0
    better_in = int(np.sum(values > neutral))
    text = f"{note}; the other one {better} in {better_in} of {len(values)} pairs"
    source = SOURCE if paper is not None else ""
    table.append(
      make(name, metric, values.tolist(), paper=paper, source=source, note=text)
    )
  return table


def rows(workdir: pathlib.Path) -> list[dict]:
  outcomes = read_outcome(workdir)
  table = []
  for arm, o in outcomes.items():
    note = (
      f"{o.steps:,} steps of 60 images, Adam 1.2e-3 (50,000 in the paper); accuracy at"
      " the early stop, last: mean of the last 10 looks, 100 steps apart"
    )
    runs = [read_level_metrics(workdir, arm)["run"]]
    make = functools.partial(results.row, runs=runs)
    table += own_rows(arm, o, functools.partial(make, note=note))
    if arm.kind not in ("ticket", "one_shot"):
      continue
    dense = outcomes[Arm("dense", 0)]
    table += compared(case(o, arm.kind), o, dense, arm.level, False, note, make)
    reinit = outcomes.get(Arm("reinit", arm.level))
    if arm.kind == "ticket" and reinit:
      name = case(o, "ticket_vs_reinit")
      table += compared(name, o, reinit, arm.level, True, note, make)
  table += unstable(workdir, "lenet300", "the paper finds LeNet stable at step 0")
  if _RESNET.value:
    note = "WRN-10-1 on CIFAR-10, 1,406 steps; the paper's ResNet-20 is stable at 2,000"
    table += unstable(pathlib.Path(_RESNET.value), "wrn10", f"{note} of 63,000")
  return table


def unstable(workdir: pathlib.Path, network: str, note: str) -> list[dict]:
  """Returns the rows of the steps of scripts/instability.py."""
  table = []
  for place in sorted(workdir.glob("instability_00/level_*/metrics.json")):
    metrics = json.loads(place.read_text())
    step = int(place.parent.name.removeprefix("level_"))
    table.append(
      results.row(
        f"{network}/instability/step={step}",
        "instability_points",
        metrics["instability"],
        runs=[metrics["run"]],
        source="Frankle et al. 2020, figure 3",
        note="test error on the line between two data orders, 30 points, above the"
        f" mean of its ends; stable below 2; {note}",
      )
    )
  return table


def main(argv: list[str]) -> None:
  del argv
  workdir = pathlib.Path(_WORKDIR.value).expanduser().absolute()
  try:
    table = results.merge_with_existing(rows(workdir), _OUT.value)
    results.write_results(_OUT.value, "lottery", table)
    print(write_report(workdir))
  except (TrainingError, OSError) as e:
    sys.exit(f"Error: {e}")
  print(f"\nWrote {_OUT.value}.")


if __name__ == "__main__":
  command_line.run(main)
