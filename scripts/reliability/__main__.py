"""Counts what training survives: kills, long runs, damaged files, device layouts.

  python -m scripts.reliability --workdir=reliability

All cases but `layouts` take an hour on one busy CPU core, most of it for the kills;
`layouts` takes another hour. --cases=soak,checkpoint selects cases, and running the
same command again adds the missing trials. Rows of cases that the workdir lacks are
left unchanged.

Every trial should pass, except in `layouts` and `nudged`: `resumed_bit_identical` equal
to `tried` for `kill`, `steps_exact` to `steps` for `soak`, `recovered` to `tried` for
`checkpoint`, `masks_intact` for `non_finite`, `exact` for `drift`. Runs on different
`layouts` differ about as much as two runs on one device of which one starts with one
weight `nudged` to the next float.
"""

import json
import pathlib
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from absl import flags, logging

from scripts.reliability import damage, kill, layouts, long_runs
from sparsejax.experiments import command_line, results
from sparsejax.training import environment

WORKDIR = flags.DEFINE_string(
  "workdir", "reliability", "Folder of the records of trials."
)
CASES = flags.DEFINE_list("cases", [], "Cases to run; default: all.")
RESULTS = flags.DEFINE_string(
  "results", "results/reliability.json", "The results file."
)
WRITE_ONLY = flags.DEFINE_bool("write_only", False, "Run nothing; write the records.")
QUICK = flags.DEFINE_bool(
  "quick", False, "Run a few trials per case and write no results."
)


class Case(NamedTuple):
  """A kind of failure.

  Attributes:
    metric: the name under which passed trials are counted.
    number: number of trials.
    quick: number of trials with --quick.
    make: maps a folder to `trial(i) -> record`. The record's `ok` is a bool; its other
      numbers and bools are summed in the results.
    what: description of one trial.
    each: the field that names a trial whose numbers become rows of their own instead of
      being summed; empty for none.
  """

  metric: str
  number: int
  quick: int
  make: Callable[[pathlib.Path], Callable[[int], dict[str, Any]]]
  what: str
  each: str = ""


TABLE = {
  "kill": Case(
    "resumed_bit_identical",
    50,
    2,
    kill.Trials,
    "a digits run killed by SIGKILL at a random moment and started again; compared:"
    " every array of the state, metrics.jsonl and summary.json",
  ),
  "soak": Case(
    "whole_runs",
    1,
    1,
    long_runs.soak(100_000),
    "one run of sparse momentum, a mask update at every tenth step",
  ),
  "checkpoint": Case(
    "recovered",
    120,
    12,
    damage.Trials,
    "the newest of two checkpoints truncated, bit-flipped, half deleted, mixed with the"
    " other or foreign, or no space left to write it: the other is restored bit for"
    " bit, and the loss is reported",
  ),
  "non_finite": Case(
    "masks_intact",
    210,
    14,
    long_runs.non_finite,
    "60 steps, at 8 of them NaN or an infinity in the loss, a gradient or the scores:"
    " counts and zeros exact after every step, each event counted",
  ),
  "layouts": Case(
    "agreeing",
    len(layouts.RUNS),
    1,
    layouts.Trials,
    "two runs of configs/digits.py on several devices, and one on a single device:"
    " repeated bit for bit (every array of the state), 99 % of the masks' entries the"
    f" same, accuracies at most {layouts.NOISE} points apart",
    each="layout",
  ),
  "nudged": Case(
    "agreeing",
    len(layouts.VARIANTS),
    1,
    layouts.nudged,
    "the scale of `layouts`: the same comparison with a run on one device that starts"
    " with one weight at the next float above its own",
    each="layout",
  ),
  "drift": Case(
    "exact",
    38,
    2,
    long_runs.drift(10_000),
    "10,000 steps of RigL around one optimizer of optax: zeros and counts are exact",
  ),
}


def recorded(path: pathlib.Path) -> list[dict[str, Any]]:
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text().splitlines()]


def run(name: str, case: Case, workdir: pathlib.Path, number: int) -> None:
  """Runs the trials that are not recorded yet."""
  file = workdir / f"{name}.jsonl"
  left = sorted(set(range(number)) - {r["trial"] for r in recorded(file)})
  if not left:
    return
  trial = case.make(workdir / name)
  for i in left:
    record = {"trial": i, **trial(i), "run": environment()}
    with open(file, "a") as out:
      out.write(json.dumps(record) + "\n")
    done = recorded(file)
    good = sum(r["ok"] for r in done)
    shown = "" if record["ok"] else f"; FAILED: {json.dumps(record)}"
    print(f"{name} {len(done)}/{number}: {good} {case.metric}{shown}", file=sys.stderr)


def rows(name: str, case: Case, records: Iterable[dict[str, Any]]) -> list[dict]:
  """Returns rows of the trials, the passed trials, and each recorded number."""
  records = list(records)
  counts: dict[str, float] = {case.metric: sum(r["ok"] for r in records)}
  counts["tried"] = len(records)
  runs = [record["run"] for record in records]
  own = []
  for record in records:
    for key, value in record.items():
      if key in ("trial", "ok") or not isinstance(value, bool | int | float):
        continue
      if case.each:
        its_case = f"{name}/{record[case.each]}"
        own.append(results.row(its_case, key, float(value), runs=[record["run"]]))
      else:
        counts[key] = counts.get(key, 0) + value
  notes = {case.metric: case.what}
  return [
    results.row(name, metric, float(n), note=notes.get(metric, ""), runs=runs)
    for metric, n in counts.items()
  ] + own


def main(_):
  logging.set_verbosity(logging.WARNING)
  workdir = pathlib.Path(WORKDIR.value).absolute()
  workdir.mkdir(parents=True, exist_ok=True)
  names = CASES.value or list(TABLE)
  unknown = sorted(set(names) - set(TABLE))
  if unknown:
    sys.exit(f"Error: cases must be among {', '.join(TABLE)}; got {', '.join(unknown)}")
  if not WRITE_ONLY.value:
    for name in names:
      case = TABLE[name]
      run(name, case, workdir, case.quick if QUICK.value else case.number)
  if QUICK.value:
    return
  found = []
  for name, case in TABLE.items():
    records = recorded(workdir / f"{name}.jsonl")
    if records:
      found += rows(name, case, records)
  found = results.merge_with_existing(found, RESULTS.value)
  order = {name: i for i, name in enumerate(TABLE)}
  found.sort(key=lambda row: order.get(row["case"].split("/")[0], len(order)))
  results.write_results(RESULTS.value, "reliability", found)


if __name__ == "__main__":
  command_line.run(main)
