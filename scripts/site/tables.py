"""Writes the tables and numbers of results/*.json into README.md and docs/.

  python -m scripts.site.tables

A table is written between `<!-- results: NAME -->` and `<!-- end -->`; `NAME published`
has only the rows with a published value. The costs of every method on a tree of
parameters follow `<!-- costs: TREE -->`, and those on a GPU `<!-- costs: TREE gpu -->`.
`<!-- summary -->` is followed by the rows of `SUMMARY`, for the README.
`<!-- methods: NAME -->` has one line per method and one column per density, the most
accurate method first.
A mean in a sentence is written between `<!-- mean: NAME CASE METRIC -->` and
`<!-- end -->`; the mark must not be at the start of a line, where it would end the
paragraph. A test compares the files with the output of this script.
"""

import json
import pathlib
import re
from typing import Any

from scripts import ROOT

ERRORS = "±: standard error of the mean over n seeds or repetitions."
_TABLE = re.compile(
  r"(<!-- results: (\w+)( published)? -->\n).*?(<!-- end -->)", re.DOTALL
)
_COSTS = re.compile(r"(<!-- costs: (\w+)( gpu)? -->\n).*?(<!-- end -->)", re.DOTALL)
_SUMMARY = re.compile(r"(<!-- summary -->\n).*?(<!-- end -->)", re.DOTALL)
_METHODS = re.compile(r"(<!-- methods: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_MEAN = re.compile(r"(<!-- mean: (\w+) (\S+) (\w+) -->).*?(<!-- end -->)")


_SPARSE_MOMENTUM = [
  (
    f"sparse momentum, {name}, {100 * density:g} % of the weights: error, %",
    "mnist_sparse_momentum",
    f"{model}/density={density:g}",
    "test_error_percent",
  )
  for model, name, densities in (
    ("lenet300", "LeNet-300-100", (0.01, 0.02, 0.04, 0.05, 0.1)),
    ("lenet5", "LeNet-5 ¹", (0.01, 0.02, 0.05)),
  )
  for density in densities
]
# The README's table: text, file, case and metric.
SUMMARY = (
  *_SPARSE_MOMENTUM,
  (
    "lottery ticket, 21 % of the weights: earlier stop, %",
    "lottery",
    "lenet300/steps=50380/weights=0.211/ticket",
    "early_stop_reduction_percent",
  ),
  (
    "the same at 13.5 %: more accurate, points",
    "lottery",
    "lenet300/steps=50380/weights=0.135/ticket",
    "accuracy_gain_points",
  ),
  (
    "that at 21 % against new initial weights: faster, times",
    "lottery",
    "lenet300/steps=50380/weights=0.211/ticket_vs_reinit",
    "early_stop_speedup",
  ),
  (
    "NeST ², LeNet-300-100, 35 times fewer parameters: error, %",
    "nest",
    "lenet300/accurate/all",
    "test_error_percent",
  ),
  (
    "NeST ², LeNet-300-100, 76 times fewer parameters: error, %",
    "nest",
    "lenet300/compact/all",
    "test_error_percent",
  ),
  (
    "NeST ², LeNet-5, 78 times fewer parameters: error, %",
    "nest",
    "lenet5",
    "test_error_percent",
  ),
)

# Scripts that have moved since results files with their commands were written.
_MOVED = {
  "scripts/benchmarks/convolution.py": "-m scripts.benchmarks",
  "scripts/benchmarks/population.py": "-m scripts.benchmarks",
  "scripts/benchmarks/selection.py": "-m scripts.benchmarks",
  "scripts/benchmarks/execution.py": "-m scripts.benchmarks.execution",
  "scripts/benchmarks/run.py": "-m scripts.benchmarks",
  "scripts/class_specialization.py": "-m scripts.reproduce.class_specialization",
  "scripts/deep_cnn.py": "-m scripts.reproduce.deep_cnn",
  "scripts/double_descent.py": "-m scripts.reproduce.double_descent",
  "scripts/interpolation_sgd.py": "-m scripts.reproduce.interpolation_sgd",
  "scripts/mnist_lottery.py": "-m scripts.reproduce.lottery_tickets",
  "scripts/mnist_sparse_momentum.py": "-m scripts.reproduce.sparse_momentum",
  "scripts/nest.py": "-m scripts.reproduce.nest",
  "scripts/reliability.py": "-m scripts.reliability",
  "scripts/scaling.py": "-m scripts.benchmarks.scaling",
  "scripts/second_order.py": "-m scripts.reproduce.second_order",
  "scripts/strong_tickets.py": "-m scripts.reproduce.strong_tickets",
  "scripts/supermask.py": "-m scripts.reproduce.supermasks",
}


def command(run: dict[str, Any]) -> str:
  """Returns the command of a run, with the present place of its script."""
  python, script, *rest = str(run["command"]).split(" ")
  return " ".join([python, _MOVED.get(script, script), *rest])


def number(value: float | None) -> str:
  if value is None:
    return ""
  return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"


def find(name: str, case: str, metric: str) -> dict[str, Any] | None:
  """Returns one row of a results file, or None."""
  path = ROOT / f"results/{name}.json"
  if not path.exists():
    return None
  rows = json.loads(path.read_text())["rows"]
  return next((r for r in rows if (r["case"], r["metric"]) == (case, metric)), None)


def value(name: str, case: str, metric: str, field: str = "mean") -> str:
  """Returns one number of a results file, as text.

  Raises:
    LookupError: there is no such row.
  """
  if (row := find(name, case, metric)) is None:
    raise LookupError(f"results/{name}.json has no row {case} {metric}")
  return number(row[field])


def ours(row: dict[str, Any]) -> str:
  """Formats the mean of a row and its standard error."""
  error = "" if row["sem"] is None else f" ± {row['sem']:.2g}"
  return number(row["mean"]) + error


def table(rows: list[dict[str, Any]]) -> str:
  """Formats rows as a Markdown table: case, metric, mean and error, n, paper.

  The error is the standard error of the mean over the n values.
  """
  lines, bar = ["| case | metric | ours | n | paper |", "|---|---|---|---|---|"], r"\|"
  for row in rows:
    numbers = ours(row), str(row["n"]), number(row["paper"])
    cells = (row["case"], row["metric"], *numbers)
    lines.append(f"| {' | '.join(cell.replace('|', bar) for cell in cells)} |")
  return "\n".join(lines)


def runs(content: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns the environments that rows of a results file were computed in."""
  return [content["runs"][i] for i in sorted({i for row in rows for i in row["runs"]})]


def results(name: str, published: bool = False) -> str:
  """Formats a results file as a table, followed by its commands and hardware."""
  content = json.loads((ROOT / f"results/{name}.json").read_text())
  rows = [r for r in content["rows"] if r["paper"] is not None or not published]
  where = dict.fromkeys(
    f"`{command(run)}` ({run['hardware']})" for run in runs(content, rows)
  )
  return f"{table(rows)}\n\n{ERRORS}\n\nMade by {', '.join(where)}.\n"


def costs(tree: str, device: str = "") -> str:
  """Formats one line per method: both kinds of step, compilation, earlier values."""
  columns = {
    "a step without a mask update": (f"off_step/{tree}/", "times_plain_step"),
    "before": (f"off_step/{tree}/", "times_plain_step_before"),
    "with one": (f"mask_update/{tree}/", "times_plain_step"),
    "before ": (f"mask_update/{tree}/", "times_plain_step_before"),
    "to compile, s": (f"compile/{tree}/", "seconds"),
    "state, bytes a parameter": (f"memory/{tree}/", "state_bytes_per_parameter"),
  }
  content = json.loads((ROOT / f"results/benchmarks{device}.json").read_text())
  means = {(row["case"], row["metric"]): row["mean"] for row in content["rows"]}
  start = columns["a step without a mask update"][0]
  methods = [c.removeprefix(start) for c, m in means if c.startswith(start)]
  if not methods:
    return "Not measured yet.\n"
  known = {
    text: place
    for text, place in columns.items()
    if any((place[0] + name, place[1]) in means for name in methods)
  }
  lines = [f"| method | {' | '.join(known)} |", "|---" * (len(known) + 1) + "|"]
  for name in dict.fromkeys(methods):
    cells = [
      number(means.get((case + name, metric))) for case, metric in known.values()
    ]
    lines.append(f"| {name} | {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def summary() -> str:
  """Formats the rows of `SUMMARY`: mean and standard error, n, published value."""
  lines = ["| | ours | n | paper |", "|---|---|---|---|"]
  for text, name, case, metric in SUMMARY:
    if (row := find(name, case, metric)) is None:
      raise LookupError(f"results/{name}.json has no row {case} {metric}")
    lines.append(f"| {text} | {ours(row)} | {row['n']} | {number(row['paper'])} |")
  return "\n".join(lines) + "\n"


def methods(name: str) -> str:
  """Formats a comparison: methods by accuracy at the lowest density, dense last.

  The last column has the multiply-adds of training at the lowest density of the line,
  in percent of those of the dense network, where zeros are skipped.
  """
  rows = json.loads((ROOT / f"results/{name}.json").read_text())["rows"]
  cells = {(row["method"], row["density"]): row for row in rows}
  densities = sorted({d for _, d in cells if d < 1})
  names = dict.fromkeys(method for method, _ in cells)

  def rank(method):
    found = [cells.get((method, d)) for d in densities]
    return method == "dense", [-row["mean"] if row else 0.0 for row in found]

  head = [f"{100 * d:g} %" for d in densities]
  lines = [f"| method | {' | '.join(head)} | training, % |"]
  lines.append("|---" * (len(head) + 2) + "|")
  for method in sorted(names, key=rank):
    line = [cells.get((method, d if method != "dense" else 1.0)) for d in densities]
    texts = ["" if row is None else ours(row) for row in line]
    first = next(row for row in line if row is not None)
    cost = f"{100 * first['multiply_adds']['training']:.0f}"
    lines.append(f"| [{method}]({method}.md) | {' | '.join(texts)} | {cost} |")
  return "\n".join(lines) + "\n"


def filled(text: str) -> str:
  text = _SUMMARY.sub(lambda m: m[1] + summary() + m[2], text)
  text = _COSTS.sub(lambda m: m[1] + costs(m[2], "_gpu" if m[3] else "") + m[4], text)
  text = _TABLE.sub(lambda m: m[1] + results(m[2], bool(m[3])) + m[4], text)
  text = _METHODS.sub(lambda m: m[1] + methods(m[2]) + m[3], text)
  return _MEAN.sub(lambda m: m[1] + value(m[2], m[3], m[4]) + m[5], text)


def files() -> list[pathlib.Path]:
  return [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def main() -> None:
  for path in files():
    old = path.read_text()
    if (new := filled(old)) != old:
      path.write_text(new)
      print(f"Wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
  main()
