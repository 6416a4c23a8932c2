"""Formats and stores the result of a run."""

import pathlib
import signal
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.console

import sparsejax as sj
from sparsejax.training import _progress, _step, _workdir

FILE = "summary.json"


class Result(NamedTuple):
  """The result of a run; arrays have one entry per seed.

  Attributes:
    finished: False if a signal stopped the run; calling again with the same arguments
      resumes it.
    stopped_by: the signal, or None.
    step: updates done.
    total_steps: updates of the whole run.
    test_accuracy: float64 (num_seeds,), fractions; NaN if not finished.
    test_loss: float64 (num_seeds,), mean cross-entropy in nats; NaN if not finished.
    density: live weights / weights of the sparsified layers, the mean over seeds.
    skipped_steps: int (num_seeds,), steps whose gradient was not finite.
    skipped_mask_updates: int (num_seeds,), mask updates whose scores were not finite.
    seconds: the time spent on the run, compilation and interrupted calls included.
    state: the last `TrainState`, stacked over seeds if there are several.
  """

  finished: bool
  stopped_by: signal.Signals | None
  step: int
  total_steps: int
  test_accuracy: np.ndarray
  test_loss: np.ndarray
  density: float
  skipped_steps: np.ndarray
  skipped_mask_updates: np.ndarray
  seconds: float
  state: _step.TrainState

  @property
  def diverged(self) -> bool:
    """Returns whether the run is finished with a test loss that is not finite."""
    return self.finished and not bool(np.all(np.isfinite(self.test_loss)))


def first_seed(result: Result) -> tuple[Any, Any]:
  """Returns the params and masks of the first seed.

  Args:
    result: the result of a run.

  Returns:
    `(params, masks)`, not stacked.
  """
  trees = result.state.params, sj.masks(result.state.opt_state)
  if result.state.key.ndim:
    return jax.tree.map(lambda x: x[0], trees)
  return trees


def to_json(result: Result) -> dict[str, Any]:
  """Returns the numbers of a result as JSON values.

  Args:
    result: the result of a finished run.

  Returns:
    A dict; errors are in percent, one per seed.
  """
  return {
    "step": result.step,
    "test_error_percent": np.round(100 * (1 - result.test_accuracy), 6).tolist(),
    "test_loss": result.test_loss.tolist(),
    "density": result.density,
    "skipped_steps": result.skipped_steps.tolist(),
    "skipped_mask_updates": result.skipped_mask_updates.tolist(),
    "seconds": round(result.seconds, 3),
  }


def write(path: pathlib.Path, result: Result) -> None:
  """Writes `summary.json` into a run's directory, which `read_json` reads."""
  _workdir.write_text(path / FILE, _workdir.json_text(to_json(result), indent=2))


def percent(values: np.ndarray) -> str:
  """Formats the mean of fractions as a percentage, with its standard error.

  Args:
    values: fractions, float (num_seeds,).

  Returns:
    A text such as `97.22 %`, or `97.22 ± 0.10 % (standard error, 3 seeds)`.

  Example:
    >>> percent(np.array([0.97])), percent(np.array([0.97, 0.98]))
    ('97.00 %', '97.50 ± 0.50 % (standard error, 2 seeds)')
  """
  values = 100 * np.asarray(values)
  if len(values) == 1:
    return f"{values[0]:.2f} %"
  sem = values.std(ddof=1) / np.sqrt(len(values))
  return f"{values.mean():.2f} ± {sem:.2f} % (standard error, {len(values)} seeds)"


def show(result: Result, path: pathlib.Path) -> None:
  """Prints the table of layers and the summary of a result.

  Args:
    result: the result of a run.
    path: the run's directory.
  """
  console = rich.console.Console(highlight=False, quiet=jax.process_index() > 0)
  if not result.finished:
    name = result.stopped_by.name if result.stopped_by else "a signal"
    console.print(
      f"Stopped by {name} at step {result.step:,} of {result.total_steps:,}; the"
      " checkpoint is written. The same command resumes the run.",
      soft_wrap=True,
    )
    return
  params, masks = first_seed(result)
  # The console must not wrap the lines of a table.
  console.print(sj.summary(params, masks), markup=False, soft_wrap=True)
  rows = [
    ("test accuracy", f"[bold green]{percent(result.test_accuracy)}[/]"),
    ("test loss", f"{result.test_loss.mean():.4f}"),
    ("density", f"{result.density:.4f}"),
    ("steps", f"{result.step:,}"),
    ("time", _progress.duration(result.seconds)),
    ("report", str(path / "report.png")),
  ]
  for name, counts in (
    ("steps skipped (gradient not finite)", result.skipped_steps),
    ("mask updates skipped (score not finite)", result.skipped_mask_updates),
  ):
    if counts.any():
      rows.insert(4, (name, f"[yellow]{', '.join(map(str, counts))}[/]"))
  width = max(len(name) for name, _ in rows) + 2
  console.print()
  for name, value in rows:
    console.print(f"{name:<{width}}{value}", soft_wrap=True)
