"""What a lottery ticket experiment came to: curves, a table, plots."""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from sparsejax.training import errors
from sparsejax.training import lottery_levels as levels
from sparsejax.training.lottery_levels import Cell


class Outcome(NamedTuple):
  """What a cell came to; arrays have one entry a seed.

  Attributes:
    density: live weights / weights of the pruned layers.
    early_stop: the step of the lowest validation loss.
    accuracy: on the test images at the early stop, percent.
    final_accuracy: the mean of the last looks at the test images, percent.
    end_accuracy: after the last step, percent.
    measured: (looks,) steps at which the test images were looked at.
    curve: (seeds, looks) test accuracy at these, percent.
    steps: of a training.
  """

  density: np.ndarray
  early_stop: np.ndarray
  accuracy: np.ndarray
  final_accuracy: np.ndarray
  end_accuracy: np.ndarray
  measured: np.ndarray
  curve: np.ndarray
  steps: int


def outcome(metrics: dict[str, Any], last: int = 10) -> Outcome:
  """Reads a cell's metrics.

  Args:
    metrics: of `lottery_levels.read_metrics`.
    last: looks at the test images that `final_accuracy` is the mean of.

  Returns:
    An `Outcome`.
  """
  curve = 100 * np.asarray(metrics["measurements"]["test_accuracy"])
  return Outcome(
    density=np.asarray(metrics["density"]),
    early_stop=np.asarray(metrics["early_stop"]),
    accuracy=100 * np.asarray(metrics["at_early_stop"]["test_accuracy"]),
    final_accuracy=curve[:, -last:].mean(1),
    end_accuracy=curve[:, -1],
    measured=np.asarray(metrics["measured"]),
    curve=curve,
    steps=int(metrics["measured"][-1]),
  )


def read(workdir: pathlib.Path) -> dict[Cell, Outcome]:
  """Returns what is done in an experiment's directory, by cell.

  Args:
    workdir: of the experiment.

  Returns:
    Outcomes, dense first, then tickets by level.

  Raises:
    WorkdirError: if there is nothing.
  """
  found = {
    cell: outcome(levels.read_metrics(workdir, cell)) for cell in levels.cells(workdir)
  }
  if not found:
    raise errors.WorkdirError(f"workdir must hold levels that are done; got {workdir}")
  return found


def table(outcomes: dict[Cell, Outcome]) -> str:
  """Returns the table for people: means over seeds, and half their range.

  Args:
    outcomes: of `read`.

  Returns:
    Lines.
  """
  head = ("", "weights", "early stop", "accuracy there %", "last looks %", "seeds")
  lines: list[tuple[str, ...]] = [head]
  for cell, o in outcomes.items():
    lines.append(
      (
        f"{cell.kind} {cell.level}" if cell.level else cell.kind,
        f"{o.density.mean():.2%}",
        f"{o.early_stop.mean():,.0f} ± {np.ptp(o.early_stop) / 2:,.0f}",
        f"{o.accuracy.mean():.2f} ± {np.ptp(o.accuracy) / 2:.2f}",
        f"{o.final_accuracy.mean():.2f} ± {np.ptp(o.final_accuracy) / 2:.2f}",
        str(len(o.accuracy)),
      )
    )
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join(
      text.ljust(w) if i == 0 else text.rjust(w)
      for i, (text, w) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in lines
  )


def write(workdir: pathlib.Path) -> str:
  """Draws the plots of an experiment into its directory.

  Args:
    workdir: of the experiment.

  Returns:
    The table.
  """
  return table(read(workdir))
