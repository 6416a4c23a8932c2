"""Reports of a lottery ticket experiment: curves, a table and plots."""

import itertools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from sparsejax import analysis
from sparsejax.experiments.lottery import _levels
from sparsejax.experiments.lottery._config import LotteryConfig
from sparsejax.experiments.lottery._levels import Arm
from sparsejax.training import WorkdirError


class Outcome(NamedTuple):
  """The result of an arm; arrays have one entry per seed.

  Attributes:
    density: live weights / weights of the pruned layers.
    early_stop: the step of the lowest validation loss.
    accuracy: test accuracy at the early stop, percent.
    final_accuracy: the mean of the last `last_evaluations` measurements of the test
      accuracy, percent.
    end_accuracy: test accuracy after the last step, percent.
    measured: (measurements,) the steps at which the test accuracy was measured.
    curve: (seeds, measurements) test accuracy at these steps, percent.
    steps: the steps of the training.
  """

  density: np.ndarray
  early_stop: np.ndarray
  accuracy: np.ndarray
  final_accuracy: np.ndarray
  end_accuracy: np.ndarray
  measured: np.ndarray
  curve: np.ndarray
  steps: int


def outcome(metrics: dict[str, Any], last: int) -> Outcome:
  """Creates the outcome of an arm from its metrics.

  Args:
    metrics: the arm's metrics, from `read_level_metrics`.
    last: the number of measurements that `final_accuracy` averages.

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


def read(workdir: pathlib.Path) -> dict[Arm, Outcome]:
  """Reads the outcomes of all finished arms of an experiment.

  Args:
    workdir: the experiment's directory.

  Returns:
    The outcomes by arm: the dense network, tickets by level, one-shot tickets, then
    controls.

  Raises:
    WorkdirError: no arm is finished.
  """
  # `config.json` has the fields that are not at their defaults.
  config = workdir / "config.json"
  fields = json.loads(config.read_text()) if config.exists() else {}
  last = fields.get("last_evaluations", LotteryConfig.last_evaluations)
  found = {
    arm: outcome(_levels.read_metrics(workdir, arm), last)
    for arm in _levels.arms(workdir)
  }
  if not found:
    raise WorkdirError(f"workdir must hold levels that are done; got {workdir}")
  return found


def table(outcomes: dict[Arm, Outcome]) -> str:
  """Formats the outcomes as a text table: means over seeds, and standard errors.

  `mean ± std(values, ddof=1) / sqrt(seeds)`; without the error for one seed.

  Args:
    outcomes: the outcomes from `read`.

  Returns:
    The lines of the table, and one that says what ± is.
  """

  def text(values, digits):
    values = np.asarray(values, float)
    mean = f"{values.mean():,.{digits}f}"
    if len(values) < 2:
      return mean
    return f"{mean} ± {values.std(ddof=1) / len(values) ** 0.5:,.{digits}f}"

  head = ("", "weights", "early stop", "accuracy there %", "last looks %", "seeds")
  lines: list[tuple[str, ...]] = [head]
  for arm, o in outcomes.items():
    lines.append(
      (
        f"{arm.kind} {arm.level}" if arm.level else arm.kind,
        f"{o.density.mean():.2%}",
        text(o.early_stop, 0),
        text(o.accuracy, 2),
        text(o.final_accuracy, 2),
        str(len(o.accuracy)),
      )
    )
  # Align the columns: the first to the left, the others to the right.
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  aligned = [
    "  ".join(
      text.ljust(w) if i == 0 else text.rjust(w)
      for i, (text, w) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in lines
  ]
  return "\n".join([*aligned, "±: standard error over the seeds"])


def write(workdir: pathlib.Path) -> str:
  """Writes the plots of an experiment to its directory, and returns its table.

  The plots are `accuracy.png`, `last_accuracy.png` and `early_stop.png`, against the
  weights remaining, and, for a network whose first layer is dense, `pixels.png`: the
  number of live weights per input in the last ticket.

  Args:
    workdir: the experiment's directory.

  Returns:
    The table, followed by the last ticket's densities and its overlap between seeds.

  Raises:
    WorkdirError: no arm is finished.
  """
  outcomes = read(workdir)
  for name, label, field in (
    ("accuracy", "test accuracy at the early stop, %", "accuracy"),
    ("last_accuracy", "test accuracy, mean of the last looks, %", "final_accuracy"),
    ("early_stop", "early stop, step", "early_stop"),
  ):
    curves: dict[str, dict[float, Any]] = {}
    for arm, o in outcomes.items():
      if arm.level:
        curves.setdefault(arm.kind, {})[float(o.density.mean())] = getattr(o, field)
    if curves:
      dense = outcomes.get(Arm("dense", 0))
      figure = analysis.plot_tickets(curves, label, getattr(dense, field, ()))
      figure.savefig(workdir / f"{name}.png", dpi=160)
  text = table(outcomes)
  tickets = [arm for arm in outcomes if arm.kind == "ticket"]
  return f"{text}\n\n{_last_ticket(workdir, tickets[-1])}" if tickets else text


def _last_ticket(workdir: pathlib.Path, arm: Arm) -> str:
  """Plots a ticket's first layer, and describes its densities and overlap as text."""
  # Read the masks without building the model, with the names and shapes of their file.
  with np.load(_levels.folder(workdir, arm) / _levels.MASKS) as file:
    names = [key.removeprefix("mask:") for key in file if key.startswith("mask:")]
    like = {
      n: jax.ShapeDtypeStruct(tuple(file[f"shape:{n}"].tolist()), bool) for n in names
    }
  masks = jax.tree.map(np.asarray, _levels.read_masks(workdir, arm, like))
  # Plot the first seed's live weights per pixel, if the first layer is dense and has as
  # many inputs as a square grey or RGB image has values.
  first = masks[min(masks)]
  side = round((first.shape[1] / 3) ** 0.5), round(first.shape[1] ** 0.5)
  shapes = [(side[1], side[1]), (side[0], side[0], 3)]
  for shape in shapes:
    if first.ndim == 3 and first.shape[1] == int(np.prod(shape)):
      title = f"live weights of each input, {arm.kind} {arm.level}, first seed"
      counts = analysis.input_connectivity(first[0], shape)
      analysis.plot_connectivity(counts, title).savefig(workdir / "pixels.png", dpi=160)
      break
  # Describe the densities, and the mean overlap of all pairs of seeds.
  densities = analysis.layer_densities(masks)
  lines = [f"{arm.kind} {arm.level}: densities of the layers"]
  lines += [f"  {name}  {d:.2%}" for name, d in densities.items()]
  if len(first) > 1:
    pairs = itertools.combinations(range(len(first)), 2)
    shared = [
      analysis.overlap(
        {n: m[i] for n, m in masks.items()}, {n: m[j] for n, m in masks.items()}
      )["all"]
      for i, j in pairs
    ]
    real, chance = np.mean(shared, axis=0)
    lines.append(
      f"two seeds share {real:.2%} of either's weights; by chance {chance:.2%}"
    )
  return "\n".join(lines)
