"""Tables in the README and the docs say what the results files say."""

import json
import pathlib
import re

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


def test_costs_are_a_line_a_method():
  text = tables.filled("<!-- costs: resnet50 -->\nold\n<!-- end -->")
  head, _, *lines = text.splitlines()[1:-1]
  cells = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in lines}
  column = head.split(" | ").index("with one") - 1
  row = tables.find("benchmarks", "mask_update/resnet50/rigl", "times_plain_step")
  assert cells["rigl"][column].strip(" |") == f"{row['mean']:.2f}"
  assert cells["static_sparse"][column].strip(" |") == ""  # its masks never change
  assert "old" not in text


# Metrics of which nest.json has the best seed's value.
NEST = (
  "parameters_ratio",
  "flops_ratio",
  "test_error_percent",
  "parameters",
  "flops",
)


@pytest.mark.parametrize(
  "path", sorted(ROOT.glob("results/*.json")), ids=lambda p: p.stem
)
def test_results_are_complete(path):
  content = json.loads(path.read_text())
  keys = {"name", "command", "commit", "date", "hardware", "versions", "rows"}
  assert set(content) == keys
  assert content["name"] == path.stem
  for row in content["rows"]:
    found = re.search(
      r"mean is that of seed (\d+), .* of seeds ([\d, ]+),", row["note"]
    )
    if path.stem == "nest" and row["metric"] in NEST:
      assert bool(found) == ("growth" not in row["case"]), row
    if found:
      # The best seed's, the values of all beside it.
      best, seeds = found.groups()
      assert row["mean"] == row["values"][seeds.split(", ").index(best)]
      if row["metric"] == "test_error_percent":
        assert row["mean"] == min(row["values"])
    else:
      mean = sum(row["values"]) / len(row["values"])
      assert row["mean"] == pytest.approx(mean)
    assert row["n"] == len(row["values"])
