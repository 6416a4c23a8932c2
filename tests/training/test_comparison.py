import itertools
import json

import numpy as np
import pytest
from absl import logging

from sparsejax.analysis.costs import _multiply_adds as multiply_adds
from sparsejax.experiments import results
from sparsejax.experiments.comparison import _grid as comparison
from sparsejax.experiments.comparison import _published as published
from sparsejax.experiments.comparison import _report as comparison_report
from sparsejax.training import _errors as errors
from sparsejax.training import _metrics as metrics
from sparsejax.training import _workdir as workdir_lib
from sparsejax.training import config as config_lib
from sparsejax.training import default_config, use_method

RUN = {
  "command": "python train.py",
  "commit": "abc",
  "date": "2026-11-28",
  "hardware": "an abacus",
  "versions": {"jax": "0.10.2"},
}


def make_config(method):
  config = default_config()
  config.model_kwargs = {"features": (16,)}
  config.update(batch_size=64, num_epochs=1)
  use_method(config, method)
  return config


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
  workdir, lines = tmp_path_factory.mktemp("compare"), []
  grid = comparison.cells(["snip", "dense"], [0.1])
  held = comparison.run_grid(
    make_config, workdir, grid[:1], [0, 1], together=2, say=lines.append
  )
  held += comparison.run_grid(make_config, workdir, grid[1:], [0], say=lines.append)
  assert held == []
  return workdir, lines


def test_cells():
  assert comparison.cells(["rigl", "dense"], [0.05, 0.01]) == [
    ("rigl", 0.01),
    ("rigl", 0.05),
    ("dense", 1.0),
  ]
  with pytest.raises(errors.ConfigError, match=r"methods must be of .*; got 'set'"):
    comparison.cells(["set"], [0.1])
  with pytest.raises(errors.ConfigError, match=r"in \(0, 1\]; got 0"):
    comparison.cells(["rigl"], [0])


def test_runs_are_told_collected_and_drawn(two_runs, tmp_path):
  workdir, lines = two_runs
  assert lines[0].startswith("snip, density 0.1, seed 0-1: ")
  assert "(standard error, 2 seeds)" in lines[0]
  config = make_config("dense")
  outcomes = comparison.collect(config, workdir)
  snip, dense = comparison.Cell("snip", 0.1), comparison.Cell("dense", 1.0)
  assert list(outcomes) == [snip, dense]
  assert list(outcomes[snip]) == [0, 1]
  # Masks from the first batch: one total, compared over the layers.
  records = metrics.read(workdir / "snip/density=0.1/seeds=0-1")
  live = [r["live"] for r in records if "live" in r]
  totals = np.sum(list(live[-1].values()), axis=0)
  assert totals.tolist() == [118, 118]  # round(0.1 * (64 * 16 + 16 * 10))
  assert live[0] == live[-1]
  assert outcomes[snip][0].inference == pytest.approx(118 / 1184)
  assert outcomes[snip][0].training == pytest.approx(118 / 1184)
  assert (outcomes[dense][0].inference, outcomes[dense][0].training) == (1, 1)
  out, plot = tmp_path / "toy.json", tmp_path / "toy.png"
  comparison_report.write(config, outcomes, out, plot)
  rows = json.loads(out.read_text())["rows"]
  assert [r["case"] for r in rows] == ["mlp/snip/density=0.1", "mlp/dense/density=1"]
  assert rows[0]["n"] == 2
  assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
  table = comparison_report.table(config, outcomes).splitlines()
  assert table[-1] == "±: standard error over the seeds"
  assert table[1].split()[:2] == ["snip", "10"]
  assert table[1].endswith("10.0%     10.0%")


def test_labels_of_the_plot_do_not_overlap():
  snip, dense = comparison.Cell("snip", 0.1), comparison.Cell("dense", 1.0)
  low, high = (comparison.Outcome(a, None, None, 10, (RUN,)) for a in (9.0, 98.9))
  fig = comparison_report.draw(make_config("dense"), {snip: {0: low}, dense: {0: high}})
  fig.draw_without_rendering()
  axes = fig.axes[0]
  assert axes.get_ylim()[1] < 99.2  # 5 % of the axis above 98.9
  boxes = [t.get_window_extent() for t in axes.get_yticklabels() if t.get_text()]
  inside = [b for b in boxes if axes.bbox.y0 <= (b.y0 + b.y1) / 2 <= axes.bbox.y1]
  assert len(inside) > 5
  for lower, upper in itertools.pairwise(sorted(inside, key=lambda b: b.y0)):
    assert lower.y1 <= upper.y0


def test_what_fails_after_training_costs_no_result(two_runs, tmp_path, monkeypatch):
  """Accuracies are written without the costs, the file without its plot."""

  def fail(*args):
    raise TypeError("no such product")

  config, said = make_config("dense"), []
  monkeypatch.setattr(comparison, "model_uses", fail)
  monkeypatch.setattr(logging, "warning", lambda line, *args: said.append(line % args))
  outcomes = comparison.collect(config, two_runs[0])
  snip = outcomes[comparison.Cell("snip", 0.1)]
  assert [(o.inference, o.training) for o in snip.values()] == [(None, None)] * 2
  monkeypatch.setattr(comparison_report, "draw", fail)
  out, plot = tmp_path / "toy.json", tmp_path / "toy.png"
  comparison_report.write(config, outcomes, out, plot)
  row = json.loads(out.read_text())["rows"][0]
  assert (row["n"], "multiply-adds" in row["note"], plot.exists()) == (2, False, False)
  assert comparison_report.keep_rows(config, {}, out) == outcomes
  line = comparison_report.table(config, outcomes).splitlines()[1]
  assert "%" not in line.split("10 %")[1]
  assert said == [
    "Multiply-adds are missing: TypeError: no such product",
    f"The plot {plot} is missing: TypeError: no such product",
  ]


def test_runs_on_text_are_collected(tmp_path):
  """The example's dtype is that of training: tokens are integers."""
  config = default_config()
  config.update(dataset="text", model="transformer")
  config.model_kwargs = {"depth": 1, "width": 8, "heads": 2}
  run = tmp_path / "dense" / "density=1" / "seeds=0"
  run.mkdir(parents=True)
  (run / "config.json").write_text(json.dumps({"seed": 0, "num_seeds": 1}))
  summary = {"test_error_percent": [60.0], "step": 3}
  (run / "summary.json").write_text(json.dumps(summary))
  parts = {"parts": [{"step": 0, **RUN}]}
  (run / "environment.json").write_text(json.dumps(parts))
  live = {"mlp1/up/kernel": 8 * 32, "mlp1/down/kernel": 32 * 8}
  records = [{"live": live, "explored": x} for x in (0.25, 0.75)]
  (run / metrics.FILE).write_text("\n".join(map(json.dumps, records)) + "\n")
  [found] = comparison.collect(config, tmp_path).values()
  assert found == {0: comparison.Outcome(40.0, 1.0, 1.0, 3, (RUN,), 0.75)}


def test_the_exploration_rate_is_a_column_where_it_was_tracked(tmp_path):
  config = make_config("dense")
  rigl, dense = comparison.Cell("rigl", 0.1), comparison.Cell("dense", 1.0)
  whole = comparison.Outcome(98.0, 1.0, 1.0, 10, (RUN,))
  sparse = comparison.Outcome(97.0, 0.1, 0.1, 10, (RUN,), 0.3)
  outcomes = {rigl: {0: sparse, 1: sparse._replace(explored=0.5)}, dense: {0: whole}}
  head, *lines, _ = comparison_report.table(config, outcomes).splitlines()
  assert head.split()[-1] == "explored"
  assert [line.split()[-1] for line in lines] == ["40.0%", "100.0%"]
  assert len(lines[1]) < len(head)  # the dense network's is blank
  assert "published" not in head  # for there is none
  out = tmp_path / "toy.json"
  comparison_report.write(config, outcomes, out, tmp_path / "toy.png")
  kept = comparison_report.keep_rows(config, {}, out)
  assert kept[rigl][0].explored == pytest.approx(0.4)
  assert kept[dense][0].explored is None
  plain = comparison_report.table(config, {dense: {0: whole}})
  assert "explored" not in plain


def test_seeds_of_an_earlier_file_are_kept(two_runs, tmp_path):
  config, out = make_config("dense"), tmp_path / "toy.json"
  outcomes = comparison.collect(config, two_runs[0])
  snip, dense = comparison.Cell("snip", 0.1), comparison.Cell("dense", 1.0)
  assert comparison_report.keep_rows(config, outcomes, out) == outcomes
  comparison_report.write(config, outcomes, out, tmp_path / "toy.png")
  written = results.read_rows(out)
  # Nothing new: the same table. One seed lost: it is put back in its place.
  assert (
    comparison_report.rows(config, comparison_report.keep_rows(config, outcomes, out))
    == written
  )
  changed = {snip: {1: outcomes[snip][1]._replace(accuracy=12.5, runs=(RUN,))}}
  merged = comparison_report.keep_rows(config, changed, out)
  assert list(merged) == [snip, dense]
  assert [o.accuracy for o in merged[snip].values()] == [
    written[0]["values"][0],
    12.5,
  ]
  row = comparison_report.rows(config, merged)[0]
  assert row["seeds"] == [0, 1]
  assert row["runs"] == [*written[0]["runs"], RUN]
  longer = {snip: {2: outcomes[snip][1]._replace(steps=1)}}
  with pytest.raises(errors.ConfigError, match="as long as the workdir's; got"):
    comparison_report.keep_rows(config, longer, out)
  config.model = "lenet300"
  assert comparison_report.keep_rows(config, {}, out) == {}
  other = results.row("mlp/snip/density=0.1", "seconds", 1.0)
  results.write_results(out, "toy", [other])
  with pytest.raises(errors.ConfigError, match=r"with the field seeds; got mlp/snip/"):
    comparison_report.keep_rows(config, {}, out)


def test_what_is_finished_is_not_done_again(two_runs):
  workdir, lines = two_runs
  before = len(lines)
  grid = comparison.cells(["snip"], [0.1])
  comparison.run_grid(make_config, workdir, grid, [1, 0], say=lines.append)
  assert len(lines) == before


def test_another_recipe_is_refused(two_runs):
  def longer(method):
    config = make_config(method)
    config.num_epochs = 2
    return config

  # RigL has no run yet, but the table would have SNIP's beside it.
  for method in ("snip", "rigl"):
    grid = comparison.cells([method], [0.1])
    with pytest.raises(errors.WorkdirError, match="num_epochs: 1 -> 2"):
      comparison.run_grid(longer, two_runs[0], grid, [0])
    assert not (two_runs[0] / "rigl").exists()


def test_what_another_process_holds_is_passed_over(tmp_path):
  grid = comparison.cells(["dense"], [0.1])
  with workdir_lib.exclusive(tmp_path / "dense/density=1/seeds=0"):
    held = comparison.run_grid(make_config, tmp_path, grid, [0])
  assert held == ["dense at 1, seeds 0"]


def test_model_names_and_published_values():
  config = make_config("dense")
  assert comparison.model_name(config) == "mlp"
  config.model_kwargs = {"depth": 28, "width": 2}
  config.model = "wide_resnet"
  assert comparison.model_name(config_lib.complete(config)) == "wide_resnet_28_2"
  value, source = published.accuracy("cifar10", "wide_resnet_28_2", "dsr", 0.2)
  assert value == 94.40
  assert "Dettmers" in source
  assert published.accuracy("digits", "mlp", "dsr", 0.2) == (None, "")


def test_multiply_adds():
  live = {"a/kernel": 10, "b/kernel": 4}
  sizes = {"a/kernel": 100, "b/kernel": 8}
  uses = {"a/kernel": 1, "b/kernel": 9}
  assert multiply_adds.forward(uses, live) == 46
  assert multiply_adds.training(uses, live, sizes, False) == 3 * 46
  assert multiply_adds.training(uses, live, sizes, True) == 2 * 46 + 172
