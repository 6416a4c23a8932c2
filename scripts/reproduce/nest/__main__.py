r"""Trains the networks of results/nest.json, or writes it from finished runs.

  python -m scripts.reproduce.nest --workdir=runs/nest
  python -m scripts.reproduce.nest --workdir=runs/nest --write_only --speed

The runs are LeNet-300-100 and LeNet-5 by the recipes of configs/mnist_lenet300_nest.py
and configs/mnist_lenet5_nest.py, and growth alone, by gradients and at random. The runs
of `lenet300/tuning/` compare distortions and scales of the inputs on 6,000 validation
images. Finished runs are not repeated, and a stopped run resumes; several processes may
share the workdir with different --runs or --seeds. Rows of runs that the workdir lacks,
and rows of other metrics, are left unchanged.

--speed removes the dead units of each case's best network and times the result on the
test images, next to a network of the paper's dense widths that has the same weights,
with masks applied and zeros where nothing was grown. The best is the one with the
lowest error on the images that steer the synthesis. Run nothing else meanwhile.
"""

import itertools
import json
import pathlib
import statistics

from absl import flags, logging

from scripts import ROOT
from scripts.reproduce.nest import speed
from sparsejax.experiments import command_line, results
from sparsejax.experiments.nest import grow_and_prune, read_milestones, write_plots
from sparsejax.training import read_metrics

# Fields of the config that differ, by the name of the run.
TUNING = {
  f"lenet300/tuning/augmentation={augmentation}/inputs={inputs}": {
    "augmentation": augmentation,
    "inputs": inputs,
    "validation_fraction": 0.1,
  }
  for inputs in ("unit", "standardized")
  for augmentation in ("affine_strong", "affine", "none")
}
# Name of a run: config, variant, seeds.
RUNS = {
  "lenet300": ("mnist_lenet300_nest", "", 3),
  "lenet300/structured": ("mnist_lenet300_nest", "structured", 3),
  "lenet5": ("mnist_lenet5_nest", "", 3),
  "lenet5/structured": ("mnist_lenet5_nest", "structured", 3),
  "lenet300/prune_only": ("mnist_lenet300_nest", "prune_only", 3),
  "lenet300/smaller": ("mnist_lenet300_nest", "smaller", 3),
  "lenet5/prune_only": ("mnist_lenet5_nest", "prune_only", 3),
  "lenet5/smaller": ("mnist_lenet5_nest", "smaller", 1),
  "growth/connections=gradient": ("mnist_lenet300_nest", "grow_gradient", 5),
  "growth/connections=random": ("mnist_lenet300_nest", "grow_random", 5),
  "growth/neurons=gradient": ("mnist_lenet300_nest", "neurons_gradient", 5),
  "growth/neurons=random": ("mnist_lenet300_nest", "neurons_random", 5),
  **{run: ("mnist_lenet300_nest", "", 1) for run in TUNING},
}
# Widths of the papers' dense networks.
WIDTHS = {"lenet300": (300, 100), "lenet5": (20, 50, 500)}
# Parameters and operations of these dense networks.
DENSE = {"lenet300": (266_610, 532_400), "lenet5": (431_080, 4_586_000)}
# Case: run, milestone, the paper's parameters, operations ratio, and error.
CASES = {
  "lenet300/accurate": ("lenet300", 0, 34.1, 35.8, 1.29),
  "lenet300/compact": ("lenet300", 1, 70.2, 79.4, 1.58),
  "lenet300/structured": ("lenet300/structured", 0, None, None, None),
  "lenet300/structured/compact": ("lenet300/structured", 1, None, None, None),
  "lenet300/prune_only/accurate": ("lenet300/prune_only", 0, None, None, None),
  "lenet300/prune_only/compact": ("lenet300/prune_only", 1, None, None, None),
  # The same recipe up to these two, which then goes on.
  "lenet300/smaller/accurate": ("lenet300/smaller", 0, 34.1, 35.8, 1.29),
  "lenet300/smaller/compact": ("lenet300/smaller", 1, 70.2, 79.4, 1.58),
  "lenet300/smaller": ("lenet300/smaller", 2, None, None, None),
  "lenet5": ("lenet5", 0, 74.3, 43.7, 0.77),
  "lenet5/prune_only": ("lenet5/prune_only", 0, None, None, None),
  "lenet5/smaller": ("lenet5/smaller", 1, None, None, None),
  "lenet5/structured": ("lenet5/structured", 0, None, None, None),
}
SOURCE = "Dai, Yin & Jha 2017 (arXiv 1711.02017), abstract and table 2"

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
_OUT = flags.DEFINE_string(
  "out", str(ROOT / "results/nest.json"), "The results file to write."
)
_RUNS = flags.DEFINE_multi_enum("runs", list(RUNS), list(RUNS), "Runs to train.")
_SEEDS = flags.DEFINE_multi_integer("seeds", None, "Seeds to train; default: all.")
_SPEED = flags.DEFINE_bool("speed", False, "Time the compacted networks too.")
_WRITE_ONLY = flags.DEFINE_bool(
  "write_only", False, "Train nothing; write the results."
)


def run_dir(run: str, seed: int) -> pathlib.Path:
  return pathlib.Path(_WORKDIR.value) / run / f"seed={seed}"


def train(run: str, seed: int) -> None:
  name, variant, _ = RUNS[run]
  path = ROOT / f"configs/{name}.py"
  config = command_line.load_config(path, variant)
  config.update(TUNING.get(run, {}), seed=seed)
  workdir = run_dir(run, seed)
  done = read_milestones(workdir) if workdir.exists() else []
  if len(done) < len(config.milestones):
    print(f"{run}, seed {seed}", flush=True)
    if len(grow_and_prune(config, workdir)) < len(config.milestones):
      raise SystemExit(130)
    write_plots(workdir)


def finished(run: str, milestone: int) -> dict[int, dict]:
  """Returns the records of a milestone, by seed."""
  found = {}
  for folder in sorted(pathlib.Path(_WORKDIR.value, run).glob("seed=*")):
    records = read_milestones(folder)
    if len(records) > milestone:
      found[int(folder.name.removeprefix("seed="))] = records[milestone]
  return found


def best_of(found: dict[int, dict]) -> int:
  """Returns the seed with the lowest error on the images that steer the synthesis.

  These are the validation images if the config has any, otherwise the distorted
  training images; never the test images.
  """
  return min(found, key=lambda seed: found[seed]["error"])


def measure_speed(case: str) -> None:
  """Times a case's best network, compacted, and writes the rows to its run folder."""
  run, milestone, *_ = CASES[case]
  if not (found := finished(run, milestone)):
    return
  folder = run_dir(run, best_of(found))
  rows = speed.rows(case, folder, milestone, WIDTHS[case.split("/")[0]])
  (folder / f"speed_{milestone}.json").write_text(json.dumps(rows, indent=1))
  print(case, *(f"{row['metric']} {row['mean']:.3g}" for row in rows), flush=True)


def speed_rows(case: str) -> list[dict]:
  """Returns the rows of `measure_speed` for the network that is now the best."""
  run, milestone, *_ = CASES[case]
  found = finished(run, milestone)
  if not found:
    return []
  file = run_dir(run, seed := best_of(found)) / f"speed_{milestone}.json"
  rows = json.loads(file.read_text()) if file.exists() else []
  return [row | {"note": f"seed {seed}; {row['note']}"} for row in rows]


def case_rows(case: str) -> list[dict]:
  run, milestone, parameters, operations, error = CASES[case]
  found = finished(run, milestone)
  if not found:
    return []
  dense_parameters, dense_flops = DENSE[case.split("/")[0]]
  best = best_of(found)
  note = (
    f"seeds {', '.join(map(str, found))}; the final state of each; the distortion and"
    " the scale of the inputs were chosen by test errors of seed 0"
  )
  runs = [r["run"] for r in found.values()]
  columns = {
    "parameters_ratio": (lambda r: dense_parameters / r["parameters"], parameters),
    "flops_ratio": (lambda r: dense_flops / (2 * r["multiply_adds"]), operations),
    "test_error_percent": (lambda r: r["test_error_percent"], error),
    "parameters": (
      lambda r: r["parameters"],
      dense_parameters / parameters if parameters else None,
    ),
    "flops": (
      lambda r: 2 * r["multiply_adds"],
      dense_flops / operations if operations else None,
    ),
  }
  rows = []
  for metric, (value, paper) in columns.items():
    rows.append(
      results.row(
        case,
        metric,
        [value(r) for r in found.values()],
        paper=None if paper is None else round(paper, 2),
        source=SOURCE if paper is not None else "",
        note=note,
        runs=runs,
      )
    )
  rows.append(
    results.row(
      case,
      "best_test_error_percent",
      found[best]["test_error_percent"],
      note=f"of seed {best}, the best by the error that steers the synthesis",
      runs=[found[best]["run"]],
    )
  )
  return rows


def growth_rows() -> list[dict]:
  rows = []
  for run in RUNS:
    if not run.startswith("growth/"):
      continue
    found = finished(run, 0)
    if not found:
      continue
    sizes = sorted({r["connections"] for r in found.values()})
    note = f"{sizes[0]:,} to {sizes[-1]:,} connections, growth alone"
    errors = [r["test_error_percent"] for r in found.values()]
    name = f"lenet300/{run}"
    runs = [r["run"] for r in found.values()]
    rows.append(results.row(name, "test_error_percent", errors, note=note, runs=runs))
  return rows


def tuning_rows() -> list[dict]:
  rows = []
  for run in TUNING:
    for milestone, name in enumerate(("accurate", "compact")):
      found = finished(run, milestone)
      if not found:
        continue
      rows.append(
        results.row(
          f"{run}/{name}",
          "validation_error_percent",
          [r["error"] for r in found.values()],
          note=f"seeds {', '.join(map(str, found))}; 6,000 images, not distorted",
          runs=[r["run"] for r in found.values()],
        )
      )
  return rows


def path_rows() -> list[dict]:
  """Returns rows of the connections at the start, at the peak and at the end."""
  rows = []
  for run in ("lenet300", "lenet5"):
    paths, runs = [], []
    for folder in sorted(pathlib.Path(_WORKDIR.value, run).glob("seed=*")):
      milestones = read_milestones(folder)
      if len(milestones) < (2 if run == "lenet300" else 1):
        continue
      runs += [record["run"] for record in milestones]
      paths.append([record["connections"] for record in read_metrics(folder)])
    for metric, pick in (
      ("seed_connections", lambda p: p[0]),
      ("peak_connections", max),
      ("final_connections", lambda p: p[-1]),
    ):
      if paths:
        values = [pick(p) for p in paths]
        rows.append(results.row(f"{run}/path", metric, values, runs=runs))
  return rows


def pooled_rows(rows: list[dict]) -> list[dict]:
  """Returns rows of all runs of the recipe of LeNet-300-100, one value per seed.

  The recipe was run in three sets, each with the same seeds from 0 on. Runs of a seed
  are not independent, so their mean counts once.
  """
  known = {(row["case"], row["metric"]): row for row in rows}
  pooled = []
  for end in ("accurate", "compact"):
    sets = (f"lenet300/{end}", f"lenet300/{end}/earlier", f"lenet300/smaller/{end}")
    for metric in ("parameters_ratio", "flops_ratio", "test_error_percent"):
      found = [known[key] for case in sets if (key := (case, metric)) in known]
      if not found:
        continue
      per_seed = [
        [value for value in values if value is not None]
        for values in itertools.zip_longest(*(row["values"] for row in found))
      ]
      pooled.append(
        results.row(
          f"lenet300/{end}/all",
          metric,
          list(map(statistics.mean, per_seed)),
          paper=found[0]["paper"],
          source=found[0]["source"],
          note=f"seeds 0 to {len(per_seed) - 1}, each the mean of its runs in "
          f"{', '.join(row['case'] for row in found)}; the distortion and the scale of"
          " the inputs were chosen by test errors of seed 0",
          runs=[run for row in found for run in row["runs"]],
        )
      )
  return pooled


def write() -> None:
  rows = [row for case in CASES for row in (*case_rows(case), *speed_rows(case))]
  rows += growth_rows() + path_rows() + tuning_rows()
  whole = results.merge_with_existing(rows, _OUT.value)
  pooled = {(row["case"], row["metric"]): row for row in pooled_rows(whole)}
  whole = [row for row in whole if (row["case"], row["metric"]) not in pooled]
  whole = sorted([*whole, *pooled.values()], key=lambda row: row["case"])
  results.write_results(_OUT.value, "nest", whole)
  print(f"Wrote {_OUT.value}: {len(rows)} rows of {_WORKDIR.value}.")


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  for run in [] if _WRITE_ONLY.value else _RUNS.value:
    for seed in _SEEDS.value or range(RUNS[run][2]):
      train(run, seed)
      write()
  for case in CASES if _SPEED.value else ():
    measure_speed(case)
  write()


if __name__ == "__main__":
  command_line.run(main)
