"""Runs the benchmarks: results/benchmarks.json, and a plot for the docs.

  python -m scripts.benchmarks --workdir=runs/benchmarks
  python -m scripts.benchmarks --workdir=runs/gpu --out=results/benchmarks_gpu.json

  selection     the largest tenth of 1e4 to 1e8 scores, against jnp.sort, lax.top_k and
                numpy.partition
  masks         memory of the masks of ResNet-50 and ViT-B
  methods       every method on these two trees: a step without and one with a mask
                update against plain SGD with momentum, time to compile, memory
  convolution   an epoch of the LeNets by each lowering
  population    tickets of LeNet-300-100, vectorized against sequential
  compaction    networks whose dead units are removed: estimated and measured speed-ups
  deep_cnn      stacks of 10,000 convolutions: compilation, steps, memory
  plain_step    SGD with momentum itself, against the time to move its bytes
  quick_start   scripts/train.py on the digits, from start to end

Alternatives run alternately in one process, and medians over rounds are written. Run
nothing else meanwhile: it takes about 25 minutes on two idle CPU cores, half of it for
`methods`.

A case with a record in the workdir is not repeated. --cases takes a regular expression,
such as --cases='selection|methods/resnet50/(rigl|snfs)'; --list prints the names. Rows
of cases that the workdir lacks are left unchanged in the results file. --networks adds
trained networks to `compaction`, from directories of scripts/train.py or of
scripts/grow_and_prune.py. --before=COMMIT adds the values of the results file at that
commit next to the new ones; --before=FILE those of a file that an older version wrote.
--quick runs all cases at tiny sizes and writes no results.
"""

import functools
import importlib
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import time

from absl import flags, logging

from scripts import ROOT
from scripts.benchmarks import compaction, picture
from scripts.reproduce import networks
from sparsejax.experiments import command_line, results

# Large arrays come last: after arrays of 1e8 scores, mask updates take half as long
# again.
PARTS = (
  "methods",
  "convolution",
  "population",
  "compaction",
  "deep_cnn",
  "plain_step",
  "selection",
)

_WORKDIR = flags.DEFINE_string("workdir", "runs/benchmarks", "Folder of the records.")
_OUT = flags.DEFINE_string(
  "out", str(ROOT / "results/benchmarks.json"), "The results file to write."
)
_PLOT = flags.DEFINE_string(
  "plot", str(ROOT / "docs/assets/benchmarks.png"), "The plot to write."
)
_CASES = flags.DEFINE_string(
  "cases", "", "A regular expression of cases; default: all."
)
_NETWORKS = flags.DEFINE_list("networks", [], "Directories of trained networks.")
_BEFORE = flags.DEFINE_string(
  "before", None, "A commit or a file with values to compare."
)
_QUICK = flags.DEFINE_bool("quick", False, "Run all cases at tiny sizes.")
_LIST = flags.DEFINE_bool("list", False, "Print the names of the cases and stop.")
_WRITE_ONLY = flags.DEFINE_bool("write_only", False, "Run nothing; write the records.")


def cases() -> dict:
  """Returns a function per case that returns its rows, in the order of the runs."""
  quick = _QUICK.value
  found = {"quick_start/digits": functools.partial(quick_start, quick)}
  for part in PARTS:
    found |= importlib.import_module(f"scripts.benchmarks.{part}").cases(quick)
  for path in _NETWORKS.value:
    found[f"compaction/{pathlib.Path(path).name}"] = functools.partial(network, path)
  return found


def quick_start(quick: bool) -> list[dict]:
  """Measures wall and processor seconds of the README's command, once installed."""
  rounds = 1 if quick else 3
  wall, processor = [], []
  for _ in range(rounds):
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryDirectory() as workdir:
      command = ["scripts/train.py", "--config=configs/digits.py"]
      command += [f"--workdir={workdir}/digits"]
      subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
      )
    wall.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor.append(
      after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    )
  case = "quick_start/digits"
  return [
    results.row(case, "seconds", wall),
    results.row(case, "processor_seconds", processor),
  ]


def network(path: str) -> list[dict]:
  """Returns rows of a trained network."""
  found = networks.load(path)
  return compaction.random_rows(
    f"compaction/{pathlib.Path(path).name}",
    found.apply,
    found.params,
    found.masks,
    found.image_shape,
    _QUICK.value,
  )


def record(case: str) -> pathlib.Path:
  """Returns the path of a case's record."""
  folder = pathlib.Path(_WORKDIR.value) / ("quick" if _QUICK.value else "full")
  return folder / f"{case}.json"


def measure(found: dict) -> None:
  """Runs the chosen cases that have no record, and prints their progress."""
  chosen = [name for name in found if re.search(_CASES.value, name)]
  if not chosen:
    sys.exit(f"Error: --cases must match a case; got {_CASES.value!r}.")
  began = time.monotonic()
  for number, name in enumerate(chosen, 1):
    if record(name).exists():
      continue
    print(f"[{number}/{len(chosen)}] {name} ...", end=" ", flush=True)
    start = time.monotonic()
    rows = found[name]()
    record(name).parent.mkdir(parents=True, exist_ok=True)
    partial = record(name).with_suffix(".partial")
    partial.write_text(json.dumps(rows, indent=1))
    partial.replace(record(name))
    key = "; ".join(f"{r['metric']} {r['mean']:.3g}" for r in rows[:3])
    print(f"{time.monotonic() - start:.0f} s: {key}", flush=True)
  print(f"{len(chosen)} cases, {time.monotonic() - began:.0f} s in this process.")


def before(source: str) -> list[dict]:
  """Returns the rows of a results file, with their metrics renamed.

  Args:
    source: the file, or a commit that has results/benchmarks.json.

  Returns:
    The rows; their metrics end in `_before`.
  """
  rows = _of_file(source) if source.endswith(".json") else _at_commit(source)
  return [
    row | {"metric": f"{row['metric']}_before"}
    for row in rows
    if not row["metric"].endswith("_before")
  ]


def _of_file(path: str) -> list[dict]:
  """Returns the rows of a results file; older versions wrote one run for all rows."""
  content = json.loads(pathlib.Path(path).read_text())
  if "runs" in content:
    return results.read_rows(path)
  run = {name: content[name] for name in content if name not in ("name", "rows")}
  return [{**row, "runs": [run]} for row in content["rows"]]


def _at_commit(commit: str) -> list[dict]:
  """Returns the rows of the results file at a commit."""
  path = "results/benchmarks.json"
  command = ["git", "-C", str(ROOT), "show", f"{commit}:{path}"]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    sys.exit(
      f"Error: --before must be a commit with {path}; git: {done.stderr.strip()}"
    )
  with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
    file.write(done.stdout)
    file.flush()
    return results.read_rows(file.name)


def table(found: dict) -> list[dict]:
  """Returns the rows of all records, then the other rows of the results file."""
  rows = []
  for name in found:
    if record(name).exists():
      rows += json.loads(record(name).read_text())
  if _BEFORE.value:
    rows += before(_BEFORE.value)
  rows = results.merge_with_existing(rows, _OUT.value)
  kinds = dict.fromkeys(row["case"].split("/")[0] for row in rows)
  order = {kind: number for number, kind in enumerate(kinds)}

  def place(row):
    return order[row["case"].split("/")[0]], row["metric"].endswith("_before")

  return sorted(rows, key=place)


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.ERROR)
  found = cases()
  if _LIST.value:
    print("\n".join(found))
    return
  if not _WRITE_ONLY.value:
    measure(found)
  if _QUICK.value:
    return
  rows = table(found)
  results.write_results(_OUT.value, pathlib.Path(_OUT.value).stem, rows)
  picture.draw(rows, pathlib.Path(_PLOT.value))
  print(f"Wrote {_OUT.value} and {_PLOT.value}.")


if __name__ == "__main__":
  command_line.run(main)
