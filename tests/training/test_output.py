"""What a run writes and shows: metrics, progress, picture."""

import io
import json

import jax
import numpy as np
import pytest
import rich.console
from matplotlib import image

from sparsejax.training import _metrics as metrics
from sparsejax.training import _picture as report
from sparsejax.training import _progress as progress
from sparsejax.training import _result as result
from sparsejax.training import _workdir as workdir


def test_metrics_are_json_whatever_comes(tmp_path):
  with metrics.Writer(tmp_path, 0) as writer:
    writer.write(
      3,
      {
        "loss": np.float32(1 / 3),
        "per_seed": np.array([1.0, np.nan]),
        "bad": float("inf"),
        "count": jax.numpy.int32(7),
        "live": {"a/kernel": np.int32(5)},
      },
    )
  (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()

  def refuse(name):
    raise AssertionError(f"{name} is no JSON")

  assert json.loads(line, parse_constant=refuse) == {
    "step": 3,
    "loss": 0.3333333,
    "per_seed": [1.0, None],
    "bad": None,
    "count": 7,
    "live": {"a/kernel": 5},
  }


def test_words_are_recorded_and_not_passed_to_writers(tmp_path):
  scalars = []

  class Scalars:
    def write_scalars(self, step, values):
      scalars.append(values)

  with metrics.Writer(tmp_path, 0, writers=[Scalars()]) as writer:
    writer.write(1, {"phase": "grow", "units": (6, 4), "layers": {"fc1": 3}, "x": None})
  (record,) = metrics.read(tmp_path)
  assert record["phase"] == "grow"
  assert scalars == [{"units": 5.0, "layers/fc1": 3.0}]


def test_metrics_after_the_checkpoint_are_taken_out(tmp_path):
  with metrics.Writer(tmp_path, 0) as writer:
    for step in (1, 2, 3):
      writer.write(step, {"x": step})
  with metrics.Writer(tmp_path, 2) as writer:
    writer.write(3, {"x": 30})
  assert [(r["step"], r["x"]) for r in metrics.read(tmp_path)] == [
    (1, 1),
    (2, 2),
    (3, 30),
  ]


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
  assert metrics.read(tmp_path) == [{"step": 1}]
  with metrics.Writer(tmp_path, 1) as writer:
    writer.write(2, {})
  assert metrics.read(tmp_path) == [{"step": 1}, {"step": 2}]


def test_tensorboard_is_optional(tmp_path):
  with metrics.Writer(tmp_path, 0, tensorboard=True) as writer:
    writer.write(1, {"loss": np.array([1.0, 2.0]), "live": {"a": 3}})
    masks = {"a": np.array([[[True, False]], [[True, True]]])}  # of two seeds
    writer.write_masks(1, masks, seeds=2)
  (events,) = (tmp_path / "tensorboard").iterdir()
  content = events.read_bytes()
  assert b"loss" in content
  assert b"live/a" in content
  assert b"layer_densities" in content
  assert b"masks/a" in content
  with metrics.Writer(tmp_path, 1, tensorboard=True):
    pass  # a finished run that is started again
  assert list((tmp_path / "tensorboard").iterdir()) == [events]


def _console(terminal):
  return rich.console.Console(file=io.StringIO(), force_terminal=terminal, width=140)


def test_lines_elsewhere_than_in_a_terminal(monkeypatch):
  monkeypatch.setattr(progress, "_PAUSE", 0.0)
  console = _console(False)
  with progress.Progress(1000, 0, console=console) as bar:
    bar.update(10, loss="2.3000", train_accuracy="11.00%", density="0.0500")
    bar.update(500, loss="0.5000", hold=True)
    bar.update(500, validation_accuracy="90.00%")
    bar.note("a note")
  text = console.file.getvalue()
  assert "\x1b" not in text
  first, second, note = text.splitlines()  # step 500 is not printed again at the end
  assert "10/1,000  train loss 2.3000  train accuracy 11.00%  density 0.0500" in first
  assert "500/1,000  train loss 0.5000  train accuracy 11.00%" in second
  assert "validation accuracy 90.00%  density 0.0500" in second
  assert " steps/s" in second
  assert "left" in second
  assert note == "a note"


def test_lines_do_not_flood(monkeypatch):
  monkeypatch.setattr(progress, "_PAUSE", 1000.0)
  console = _console(False)
  with progress.Progress(1000, 0, console=console) as bar:
    for step in range(1, 1000):
      bar.update(step, loss="1")
  assert len(console.file.getvalue().splitlines()) == 2


def test_a_bar_in_a_terminal():
  console = _console(True)
  with progress.Progress(1000, 0, console=console) as bar:
    bar.update(10, loss="2.3000")
    bar.update(500, loss="0.5000", validation_accuracy="90.00%", density="0.0500")
  text = console.file.getvalue()
  numbers = ("50%", "0.5000", "90.00%", "0.0500")
  for part in ("train loss", "valid.", "steps/s", "left", *numbers):
    assert part in text


def test_a_finished_run_whose_loss_is_not_finite_has_diverged():
  one = np.zeros(2)
  done = result.Result(True, None, 9, 9, one, one, 0.1, one, one, 1.0, None)
  assert not done.diverged
  bad = done._replace(test_loss=np.array([0.1, np.nan]))
  assert bad.diverged
  assert not bad._replace(finished=False).diverged  # not evaluated yet


def test_a_diverged_result_is_json_and_comes_back(tmp_path):
  """JSON has no NaN: JavaScript, jq and pandas refuse it."""
  loss, count = np.array([0.25, np.nan, np.inf]), np.zeros(3, int)
  accuracy = np.array([0.75, 0.1, 0.1])
  done = result.Result(True, None, 9, 9, accuracy, loss, 0.1, count, count, 1.0, None)
  result.write(tmp_path, done)

  def refuse(name):
    raise AssertionError(f"{name} is no JSON")

  file = tmp_path / result.FILE
  json.loads(file.read_text(), parse_constant=refuse)
  found = workdir.read_json(file)
  np.testing.assert_array_equal(found["test_loss"], [0.25, np.nan, np.nan])
  assert found["test_error_percent"] == [25.0, 90.0, 90.0]
  assert (found["step"], found["seconds"]) == (9, 1.0)


def _history(layers, seeds, epochs=5):
  records = []
  for e in range(epochs):
    value = 0.1 if seeds == 1 else [0.1] * seeds
    live = {f"layer{i}/kernel": 10 * (i + 1) + e for i in range(layers)}
    if seeds > 1:
      live = {k: [v] * seeds for k, v in live.items()}
    records.append({"step": e, "epoch": e, "validation_accuracy": value, "live": live})
    records.append({"step": e, "epoch": e + 0.5, "train_accuracy": value})
  return records, {f"layer{i}/kernel": 1000 for i in range(layers)}


@pytest.mark.parametrize(("layers", "seeds"), [(1, 1), (3, 1), (12, 3), (54, 1)])
def test_report_is_drawn(tmp_path, layers, seeds):
  records, sizes = _history(layers, seeds)
  figure = report.draw(records, sizes, "title", "subtitle", "97.00 %")
  figure.savefig(tmp_path / "report.png")
  assert image.imread(tmp_path / "report.png").std() > 0.01
  error, live = figure.axes
  assert len(error.lines) == 2
  assert len(live.lines) == layers
  np.testing.assert_array_equal(live.lines[0].get_ydata(), [10, 11, 12, 13, 14])


def test_every_error_is_inside_the_axis():
  """Also that of the first epochs, and of the worst and the best seed."""
  accuracies = [[0.1, 0.05], [0.9, 0.3], [0.98, 0.97], [0.99, 1.0], [0.99, 0.99]]
  records = [
    {"epoch": i + 1, "validation_accuracy": a, "live": {"a": [5, 5]}}
    for i, a in enumerate(accuracies)
  ]
  error, _ = report.draw(records, {"a": 10}).axes
  assert error.get_yscale() == "log"
  low, high = error.get_ylim()
  assert low <= 0.01
  assert high >= 95
  means = np.mean([[90, 95], [10, 70], [2, 3], [1, 0.01], [1, 1]], axis=1)
  np.testing.assert_allclose(error.lines[0].get_ydata(), means)


def test_report_of_a_run_that_never_got_anywhere(tmp_path):
  records, sizes = _history(2, 1, epochs=1)
  records[1]["train_accuracy"] = None
  report.draw(records, sizes).savefig(tmp_path / "report.png")
  report.draw([], {}).savefig(tmp_path / "report.png")


def test_labels_are_moved_apart():
  places = report._spread({"a": 0.5, "b": 0.5, "c": 0.52}, gap=0.1)
  values = sorted(places.values())
  assert np.diff(values).min() > 0.099
  assert places["c"] == max(values)


def test_masks_that_never_moved_are_said_once():
  text = io.StringIO()
  console = rich.console.Console(file=text, width=300)
  with progress.Progress(10, 0, console=console) as shown:
    for due in (1, 9, 10, 20):
      shown.unmoved(due)
  [line] = text.getvalue().splitlines()
  assert line.startswith("Warning: 10 mask updates were due and no mask ever moved.")


def test_what_was_not_finite_is_said_once():
  text = io.StringIO()
  console = rich.console.Console(file=text, width=200)
  with progress.Progress(10, 0, console=console) as shown:
    for steps, mask_updates in ((0, 0), (2, 0), (3, 1), (3, 1)):
      shown.skipped(steps, mask_updates)
  assert text.getvalue().splitlines() == [
    "Warning: A step was skipped: its gradient was not finite. The summary counts"
    " them.",
    "Warning: A mask update was skipped: a score was not finite. The summary counts"
    " them.",
  ]


def test_a_picture_that_fails_leaves_the_old_one(tmp_path):
  def fail():
    with workdir.replacing(tmp_path / report.FILE) as file:
      file.write(b"new")
      raise ValueError("no ink")

  (tmp_path / report.FILE).write_bytes(b"old")
  with pytest.raises(ValueError, match="no ink"):
    fail()
  assert [p.name for p in tmp_path.iterdir()] == [report.FILE]
  assert (tmp_path / report.FILE).read_bytes() == b"old"
