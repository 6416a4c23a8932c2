"""Ratios and differences of tickets are taken seed by seed."""

import numpy as np
import pytest

from scripts.reproduce.lottery_tickets import pairs
from sparsejax.experiments import results
from sparsejax.experiments.lottery import Outcome
from sparsejax.experiments.lottery import _report as lottery_report


def outcome(early_stop, accuracy):
  accuracy = np.array(accuracy)
  return Outcome(
    density=np.full(len(accuracy), 0.25),
    early_stop=np.array(early_stop),
    accuracy=accuracy,
    final_accuracy=accuracy,
    end_accuracy=accuracy,
    measured=np.array([100]),
    curve=accuracy[:, None],
    steps=400,
  )


def test_both_arms_count_in_the_standard_error():
  ticket, dense = outcome([100, 200], [98.0, 97.0]), outcome([200, 200], [97.0, 97.0])
  found = pairs.gains(ticket, dense, control=False)
  assert found["early_stop_reduction_percent"].tolist() == [50, 0]
  assert found["accuracy_gain_points"].tolist() == [1, 0]
  reinit = outcome([400, 200], [96.0, 96.0])
  speedup = pairs.gains(ticket, reinit, control=True)["early_stop_speedup"]
  assert speedup.tolist() == [4, 1]
  # std((4, 1), ddof=1) / sqrt(2) = 1.5; divided by the mean step of the tickets, as
  # formerly, the values were 8/3 and 4/3, and the error two thirds.
  assert results.row("a", "b", speedup.tolist())["sem"] == pytest.approx(1.5)


def test_the_report_says_what_its_errors_are():
  arm = lottery_report.Arm("dense", 0)
  text = lottery_report.table({arm: outcome([100, 200, 300], [95.0, 96.0, 97.0])})
  assert "200 ± 58" in text  # 100 / sqrt(3)
  assert "96.00 ± 0.58" in text
  assert text.endswith("±: standard error over the seeds")
  assert "±" not in lottery_report.table({arm: outcome([1], [95.0])}).split("\n±")[0]
