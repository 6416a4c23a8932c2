"""Tables in the README and the docs say what the results files say."""

import functools
import json
import pathlib
import statistics
import subprocess

import pytest

from scripts.site import scaling_page, tables

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("path", tables.files(), ids=lambda p: p.name)
def test_tables_equal_the_results(path):
  text = path.read_text()
  assert tables.filled(text) == text, "run: python -m scripts.site.tables"


def test_the_page_of_scaling_equals_its_results():
  rows = json.loads((ROOT / "results/scaling.json").read_text())["rows"]
  assert (ROOT / "docs/scaling.md").read_text() == scaling_page.page(rows)


def test_a_mean_in_a_sentence_is_that_of_its_row():
  row = tables.find("benchmarks", "selection/n=1e7", "speedup_over_jnp_sort")
  mark = "<!-- mean: benchmarks selection/n=1e7 {} -->{}<!-- end --> times"
  text = tables.filled(mark.format("speedup_over_jnp_sort", "0"))
  assert text == mark.format("speedup_over_jnp_sort", f"{row['mean']:.2f}")
  with pytest.raises(LookupError, match=r"results/benchmarks.json has no row .* speed"):
    tables.filled(mark.format("speed", "0"))


def test_the_summary_has_means_errors_seeds_and_published_values():
  _, _, _, *lines = tables.filled("<!-- summary -->\nold\n<!-- end -->").splitlines()
  assert len(lines) == len(tables.SUMMARY) + 1
  [at] = [i for i, entry in enumerate(tables.SUMMARY) if "earlier stop" in entry[0]]
  _, *names = tables.SUMMARY[at]
  row = tables.find(*names)
  assert row is not None
  wanted = f"{row['mean']:.2f} ± {row['sem']:.2g} | {row['n']} | {row['paper']:.2f} |"
  assert lines[at].endswith(wanted)


def test_costs_are_a_line_a_method():
  text = tables.filled("<!-- costs: resnet50 -->\nold\n<!-- end -->")
  head, _, *lines = text.splitlines()[1:-1]
  cells = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in lines}
  column = head.split(" | ").index("with one") - 1
  row = tables.find("benchmarks", "mask_update/resnet50/rigl", "times_plain_step")
  assert cells["rigl"][column].strip(" |") == f"{row['mean']:.2f}"
  assert cells["static_sparse"][column].strip(" |") == ""  # its masks never change
  assert "old" not in text


def test_methods_are_ordered_by_accuracy_at_the_lowest_density():
  text = tables.filled("<!-- methods: mnist_methods -->\nold\n<!-- end -->")
  head, _, *lines = text.splitlines()[1:-1]
  assert head.startswith("| method | 1 % | 2 % | 5 % | 10 % |")
  first = [float(line.split("|")[2].split("±")[0] or 0) for line in lines]
  assert first[:-1] == sorted(first[:-1], reverse=True)
  assert lines[-1].startswith("| [dense](dense.md) |")
  row = tables.find(
    "mnist_methods", "lenet300/rigl/density=0.05", "test_accuracy_percent"
  )
  [rigl] = [line for line in lines if "[rigl]" in line]
  assert rigl.split("|")[4].strip() == f"{row['mean']:.2f} ± {row['sem']:.2g}"


@functools.cache
def exists(commit: str) -> bool:
  command = ["git", "-C", str(ROOT), "cat-file", "-e", f"{commit}^{{commit}}"]
  return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
  "path", sorted(ROOT.glob("results/*.json")), ids=lambda p: p.stem
)
def test_results_are_complete(path):
  content = json.loads(path.read_text())
  assert set(content) == {"name", "runs", "rows"}
  assert content["name"] == path.stem
  for row in content["rows"]:
    assert row["n"] == len(row["values"]) >= 1
    assert row["mean"] == pytest.approx(statistics.mean(row["values"]))
    if row["n"] > 1:
      sem = statistics.stdev(row["values"]) / row["n"] ** 0.5
      assert row["sem"] == pytest.approx(sem)
    else:
      assert row["sem"] is None
    assert bool(row["source"]) >= (row["paper"] is not None), row
    assert row["runs"], row


@pytest.mark.parametrize(
  "path", sorted(ROOT.glob("results/*.json")), ids=lambda p: p.stem
)
def test_rows_name_the_command_and_the_commit_that_made_them(path):
  if not (ROOT / ".git").exists():
    pytest.skip("not a checkout: there are no commits to look for")
  content = json.loads(path.read_text())
  for run in content["runs"]:
    assert run["command"].startswith("python "), run
    assert "--write_only" not in run["command"], run
    assert run["hardware"], run
    assert run["versions"]["jax"], run
  lost = {
    f"{row['case']} {row['metric']}"
    for row in content["rows"]
    if not all(exists(content["runs"][i]["commit"]) for i in row["runs"])
  }
  assert sorted(lost) == []
