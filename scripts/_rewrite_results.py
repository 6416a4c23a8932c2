"""Rewrites results/*.json from their values and their history.

  python scripts/_rewrite_results.py

Run once, when the format of the files changed. It does three things.

1. Each row gets the environments that it was computed in. Each file had one command and
commit, of the process that wrote it last. A row's own are read from the file's history:

- A row with the field `provenance` comes from the version of the file that was written
  at its commit.
- A row of a file that was written from finished runs (`--write_only`) comes from the
  first version of the file that has it. Its command without `--write_only` is the one
  that trains; "trained at X" in the note is the commit.
- The other rows come from the process that wrote the file last.

Hardware and versions are those of the process that wrote the version, unless a note
tells those of the training.

2. Ratios of lottery tickets are computed per seed, from the stored steps.

3. `mean` and `sem` are those of all seeds, also in NeST, where `mean` was the best
seed's. Runs that a later version of a file replaced come back, with the case's name
followed by what tells them apart.
"""

import functools
import json
import pathlib
import re
import shlex
import subprocess

from sparsejax.experiments import results

ROOT = pathlib.Path(__file__).resolve().parent.parent
KEYS = ("command", "commit", "date", "hardware", "versions")
_HEX = r"[0-9a-f]{7,40}"
_TRAINED_AT = re.compile(rf"; trained at ({_HEX}(?:, {_HEX})*)")
_CELL_AT = re.compile(rf"; at ({_HEX})\b")
_TRAINED_ON = re.compile(r"trained on (one core [^,]*), Python ([\d.]+), JAX ([\d.]+)")
KINDS = ("ticket", "reinit")
NEST_NOTE = (
  "the final state of each; the distortion and the scale of the inputs were chosen by"
  " test errors of seed 0"
)
LOTTERY = "configs/mnist_lenet300_lottery.py --workdir=lenet300"
RESNET = "configs/cifar10_wrn10_lottery.py --workdir=wrn"


def git(*arguments: str) -> str:
  command = ["git", "-C", str(ROOT), *arguments]
  return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@functools.cache
def full(commit: str) -> str:
  """Returns all 40 digits of a commit, if the repository has it."""
  try:
    name = f"{commit.removesuffix('+')}^{{commit}}"
    found = git("rev-parse", "--verify", "--quiet", name).strip()
  except subprocess.CalledProcessError:
    return commit
  return found + "+" * commit.endswith("+")


def key(row: dict) -> tuple:
  return row["case"], row["metric"].removesuffix("_before"), tuple(row["values"])


def history(path: str) -> list[tuple[dict, set]]:
  """Returns the provenance and the rows of each version of a file, oldest first.

  The rows of two files are in another one now, where their cases have other names.
  """
  versions = []
  if path == "results/benchmarks.json":
    for part in ("_convolution", "_population"):
      for made, rows in history(f"results/benchmarks{part}.json"):
        versions.append((made, {(None, *row[1:]) for row in rows}))
  for commit in git("log", "--reverse", "--format=%H", "--", path).split():
    try:
      content = json.loads(git("show", f"{commit}:{path}"))
    except (subprocess.CalledProcessError, ValueError):
      continue
    if "commit" in content:
      made = {name: content[name] for name in KEYS}
      versions.append((made, {key(row) for row in content["rows"]}))
  return versions


def training_command(command: str, case: str) -> str:
  words = shlex.split(command)
  if words[1] == "scripts/mnist_lottery.py":
    config = RESNET if case.startswith("wrn10") else LOTTERY
    if "/instability/" not in case:
      return f"python scripts/lottery.py --config={config}"
    return f"python scripts/instability.py --config={config}"
  left_out = ("--write_only", "--trained_on=", "--before=")
  return shlex.join(w for w in words if not w.startswith(left_out))


def runs(row: dict, content: dict, versions: list[tuple[dict, set]]) -> list[dict]:
  at, told = row.get("provenance"), _TRAINED_AT.search(row["note"])
  known = {key(row), (None, *key(row)[1:])}
  having = [made for made, rows in versions if known & rows]
  written_from_runs = re.search("--write_only|mnist_lottery", content["command"])
  if at:
    commit = at["commit"].removesuffix("+")
    same = [m for m in having if (m["commit"] or "").startswith(commit)]
    made = {**(same or having)[0], **at}
  elif written_from_runs:
    made = having[0]
  else:
    made = {name: content[name] for name in KEYS}
  made = {**made, "command": training_command(made["command"], row["case"])}
  told = told or _CELL_AT.search(row["note"])
  if on := _TRAINED_ON.search(row["note"]):
    made |= {"hardware": on[1], "versions": {"python": on[2], "jax": on[3]}}
  elif "one NVIDIA H200" in row["note"]:
    made |= {"hardware": "one NVIDIA H200", "versions": {"jax": "0.11.2"}}
  commits = told[1].split(", ") if told else [made["commit"]]
  return [{**made, "commit": full(commit)} for commit in commits]


def pair_lottery(rows: list[dict]) -> None:
  """Computes the ratios of early stops per seed."""
  steps = {r["case"]: r["values"] for r in rows if r["metric"] == "early_stop_step"}
  for row in rows:
    case = row["case"]
    if row["metric"] == "early_stop_reduction_percent":
      pairs = zip(steps[case], steps["lenet300/dense"], strict=True)
      row |= summary([100 * (1 - ticket / dense) for ticket, dense in pairs])
    elif row["metric"] == "early_stop_speedup":
      ticket, reinit = (case.replace("ticket_vs_reinit", k) for k in KINDS)
      pairs = zip(steps[ticket], steps[reinit], strict=True)
      row |= summary([other / ticket for ticket, other in pairs])


def summary(values: list[float]) -> dict:
  whole = results.row("", "", values)
  return {name: whole[name] for name in ("mean", "sem", "n", "values")}


def nest_means(rows: list[dict]) -> list[dict]:
  """Returns NeST's rows with means of all seeds, and LeNet-5's seed 0 in its case."""
  alone = {r["metric"]: r for r in rows if r["case"] == "lenet5/seed=0"}
  kept = []
  for row in rows:
    if row["case"] == "lenet5/seed=0":
      continue
    if row["case"] == "lenet5" and row["metric"] in alone:
      first = alone[row["metric"]]
      row["values"] = first["values"] + row["values"]
      row["runs"] = first["runs"] + row["runs"]
      row["note"] = row["note"].replace("seeds 1, 2,", "seeds 0, 1, 2,")
    seeds = re.search(r"of (seeds [\d, ]*\d), whose values", row["note"])
    if seeds:
      machine = re.search(r"; trained on .*", row["note"])
      row["note"] = f"{seeds[1]}; {NEST_NOTE}{machine[0] if machine else ''}"
      row |= summary(row["values"])
    kept.append(row)
  return kept


def earlier(path: str, commit: str, metrics: str, cases: str) -> list[dict]:
  """Returns rows of the version of a file at a commit."""
  content = json.loads(git("show", f"{commit}:{path}"))
  made = {name: content[name] for name in KEYS}
  chosen = [
    {**row, "runs": runs(row, content, [(made, {key(row)})])}
    for row in content["rows"]
    if re.fullmatch(metrics, row["metric"]) and re.fullmatch(cases, row["case"])
  ]
  for row in chosen:
    row |= summary(row["values"])
    row["note"] = _TRAINED_AT.sub("", row["note"])
  return chosen


def lost_rows(name: str) -> list[dict]:
  """Returns the rows that later runs replaced."""
  found = []
  if name == "nest":
    metrics = "parameters_ratio|flops_ratio|test_error_percent|parameters|flops"
    cases = "lenet300/(accurate|compact)"
    for row in earlier("results/nest.json", "79dda2d", metrics, cases):
      seeds = re.findall(r"of (seeds [\d, ]*\d), whose values", row["note"])[0]
      note = f"{seeds}; {NEST_NOTE}; the same recipe on another machine, earlier"
      found.append({**row, "case": f"{row['case']}/earlier", "note": note})
  if name == "mnist_sparse_momentum":
    path = f"results/{name}.json"
    for row in earlier(path, "b20d565", ".*", "lenet5/.*"):
      found.append({**row, "case": f"{row['case']}/batch=100"})
    for row in earlier(path, "14587d7", ".*", "lenet5/.*"):
      found.append({**row, "case": f"{row['case']}/batch=100/epochs=100"})
  return found


def main() -> None:
  for path in sorted((ROOT / "results").glob("*.json")):
    content = json.loads(path.read_text())
    if "runs" in content:
      continue
    versions = history(f"results/{path.name}")
    all_runs, rows = [], []
    for row in content["rows"]:
      own = runs(row, content, versions)
      all_runs += [run for run in own if run not in all_runs]
      indices = [all_runs.index(run) for run in own]
      row["note"] = _CELL_AT.sub("", _TRAINED_AT.sub("", row["note"]))
      note = list(row).index("note") + 1
      base, fields = list(row.items())[:note], dict(list(row.items())[note:])
      for name in ("provenance", "commits"):
        fields.pop(name, None)
      rows.append({**dict(base), "runs": indices, **fields})
    if path.stem == "lottery":
      pair_lottery(rows)
    if path.stem == "nest":
      rows = nest_means(rows)
    for row in lost_rows(path.stem):
      own = row["runs"]
      all_runs += [run for run in own if run not in all_runs]
      rows.append({**row, "runs": [all_runs.index(run) for run in own]})
    whole = {"name": content["name"], "runs": all_runs, "rows": rows}
    path.write_text(json.dumps(whole, indent=1, allow_nan=False) + "\n")
    print(path.name, len(rows), "rows,", len(all_runs), "runs")


if __name__ == "__main__":
  main()
