"""Reports of a comparison: rows of a results file, a table and a plot."""

import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from matplotlib import figure, ticker

from sparsejax.analysis import COLORS, INK, method_name, run_title, style_axes
from sparsejax.experiments import results
from sparsejax.experiments.comparison import _published
from sparsejax.experiments.comparison._grid import Cell, Outcome, model_name
from sparsejax.training import METHODS, ConfigError, TrainConfig

Outcomes = Mapping[Cell, Mapping[int, Outcome]]

_MARKERS = "osD"  # together with the colors, these distinguish 36 methods

_TICKS = (0, 20, 40, 60, 80, 85, 90, 92, 94, 95, 96, 97, 98, 98.5, 99, 99.5, 99.8, 99.9)


def rows(config: TrainConfig, outcomes: Outcomes) -> list[dict[str, Any]]:
  """Returns the rows of a results file, with published values where there are any.

  Args:
    config: a config of the comparison, for the model and the data set.
    outcomes: the outcomes from `collect`.

  Returns:
    One row per cell, from `results.row`, with the fields that `keep` reads.
  """
  model, table = model_name(config), []
  for cell, found in outcomes.items():
    paper, source = _published.accuracy(config.dataset, model, *cell)
    several = list(found.values())
    inference, training = _costs(several)
    explored = _explored(several)
    fields: dict[str, Any] = {} if explored is None else {"explored": explored}
    note = f"{several[0].steps} steps; seeds {', '.join(map(str, found))}"
    if inference is not None:
      note += (
        f"; multiply-adds of the dense network's: {inference:.2%} to infer,"
        f" {training:.2%} to train (estimated)"
      )
    table.append(
      results.row(
        f"{model}/{cell.method}/density={cell.density:g}",
        "test_accuracy_percent",
        [o.accuracy for o in several],
        paper=paper,
        source=source,
        note=note,
        runs=[run for o in several for run in o.runs],
        model=model,
        method=cell.method,
        density=cell.density,
        steps=several[0].steps,
        seeds=list(found),
        multiply_adds={"inference": inference, "training": training},
        **fields,
      )
    )
  return table


def keep_rows(
  config: TrainConfig, outcomes: Outcomes, held: pathlib.Path
) -> dict[Cell, dict[int, Outcome]]:
  """Adds the outcomes of an earlier results file for seeds that have none.

  This keeps results whose run directories no longer exist. A results file stores costs
  and environments per cell, so all seeds of a cell get the same ones.

  Args:
    config: a config of the comparison, for the model; rows of other models are
      ignored.
    outcomes: the outcomes from `collect`, which take precedence over the file's.
    held: a results file from `write`; if it does not exist, nothing is added.

  Returns:
    Outcomes by cell, in the order of `METHODS`, then by seed.

  Raises:
    ConfigError: the file's runs of a cell have a different number of steps, or its
      rows lack the fields of a comparison, as in files of older versions.
  """
  merged = {cell: dict(found) for cell, found in outcomes.items()}
  for entry in results.read_rows(held):
    if "seeds" not in entry:
      raise ConfigError(
        f"{held} must hold rows of a comparison, with the field seeds; got"
        f" {entry['case']} without it, which is of another experiment or version"
      )
    if entry["model"] != model_name(config):
      continue
    cell = Cell(entry["method"], entry["density"])
    here = merged.setdefault(cell, {})
    steps = {o.steps for o in here.values()} - {entry["steps"]}
    if steps:
      raise ConfigError(
        f"{held} must hold runs as long as the workdir's; got {entry['steps']} steps of"
        f" {entry['case']} beside {min(steps)}"
      )
    costs = entry["multiply_adds"]
    outcome = Outcome(
      accuracy=0.0,
      inference=costs["inference"],
      training=costs["training"],
      steps=entry["steps"],
      runs=tuple(entry["runs"]),
      explored=entry.get("explored"),
    )
    for seed, accuracy in zip(entry["seeds"], entry["values"], strict=True):
      here.setdefault(seed, outcome._replace(accuracy=accuracy))
  order = list(METHODS)
  return {
    cell: dict(sorted(merged[cell].items()))
    for cell in sorted(merged, key=lambda c: (order.index(c.method), c.density))
  }


def table(config: TrainConfig, outcomes: Outcomes) -> str:
  """Formats the outcomes as a text table, sorted by density, then by accuracy.

  Args:
    config: a config of the comparison.
    outcomes: the outcomes from `collect`.

  Returns:
    The lines of the table, and one that says what ± is. FLOPs are percentages of the
    dense network's, for inference and for training; they are blank where they cannot be
    counted. A column that would be blank is left out: `published` where no value is,
    and `explored`, the exploration rate, where no run tracked it (`track_exploration`
    in the config).
  """
  head = ("method", "density", "accuracy %", "seeds", "published", "FLOPs", "training")
  head += ("explored",)
  lines: list[tuple[str, ...]] = [head]

  def order(item):
    cell, found = item
    return cell.density, -np.mean([o.accuracy for o in found.values()])

  for cell, found in sorted(outcomes.items(), key=order):
    several = list(found.values())
    mean, sem = _mean([o.accuracy for o in several])
    paper, _ = _published.accuracy(config.dataset, model_name(config), *cell)
    inference, training = _costs(several)
    explored = _explored(several)
    lines.append(
      (
        cell.method,
        f"{100 * cell.density:g} %",
        f"{mean:.2f}" + (f" ± {sem:.2f}" if len(several) > 1 else ""),
        str(len(several)),
        "" if paper is None else f"{paper:.2f}",
        "" if inference is None else f"{inference:.1%}",
        "" if training is None else f"{training:.1%}",
        "" if explored is None else f"{explored:.1%}",
      )
    )
  # Leave out the columns that are blank in all lines.
  filled = [any(column[1:]) for column in zip(*lines, strict=True)]
  lines = [tuple(itertools.compress(line, filled)) for line in lines]
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


def draw(config: TrainConfig, outcomes: Outcomes, title: str = "") -> figure.Figure:
  """Plots accuracy against density, with one line per method and the dense network's.

  Args:
    config: a config of the comparison.
    outcomes: the outcomes from `collect`.
    title: the title above the plot.

  Returns:
    A figure; bars are standard errors, hollow markers are published values.
  """
  fig = figure.Figure(figsize=(8.6, 5.2), facecolor="white")
  axes = fig.subplots()
  fig.subplots_adjust(left=0.09, right=0.76, top=0.88, bottom=0.12)
  axes.set_title(title)
  # One line per method, with its published values as hollow markers.
  methods = list(dict.fromkeys(cell.method for cell in outcomes if cell.density < 1))
  for i, method in enumerate(methods):
    color, marker = COLORS[i % len(COLORS)], _MARKERS[i // len(COLORS) % 3]
    own = {c.density: o for c, o in outcomes.items() if c.method == method}
    points = [(d, *_mean([o.accuracy for o in own[d].values()])) for d in sorted(own)]
    x, y, error = np.array(points).T
    label = method_name(method)
    axes.errorbar(
      x, y, error, color=color, marker=marker, ms=5, lw=1.6, capsize=2, label=label
    )
    for density in own:
      paper, _ = _published.accuracy(
        config.dataset, model_name(config), method, density
      )
      if paper is not None:
        axes.plot(density, paper, marker=marker, ms=7, mfc="none", mec=color, ls="")
  # The dense network's accuracy as a horizontal line, with its standard error.
  dense = outcomes.get(Cell("dense", 1.0))
  if dense:
    mean, sem = _mean([o.accuracy for o in dense.values()])
    axes.axhline(mean, color=INK, lw=1.2, ls=(0, (5, 3)), label="Dense")
    axes.axhspan(mean - sem, mean + sem, color=INK, alpha=0.1, lw=0)
  densities = sorted({cell.density for cell in outcomes if cell.density < 1})
  axes.set_xscale("log")
  axes.xaxis.set_major_locator(ticker.FixedLocator(densities))
  axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f"{100 * v:g}%"))
  axes.xaxis.set_minor_locator(ticker.NullLocator())
  axes.set_xlabel("weights kept")
  # The vertical axis is the logarithm of the error, so that 98 and 98.5 % are as far
  # apart as 92 and 94 %.
  axes.set_yscale("function", functions=(_height, _accuracy))
  axes.autoscale(axis="y")  # the margins that it has are those of a linear axis
  ticks = _ticks(*axes.get_ylim())
  few = len(ticks) < 3
  locator = ticker.MaxNLocator(5) if few else ticker.FixedLocator(ticks)
  axes.yaxis.set_major_locator(locator)
  axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f"{v:g}"))
  axes.set_ylabel("test accuracy, %")
  style_axes(axes, labelsize=9.5)
  handles, labels = axes.get_legend_handles_labels()
  if handles:
    fig.legend(
      handles, labels, loc="center left", bbox_to_anchor=(0.77, 0.5), frameon=False,
      fontsize=9.5, labelcolor=INK,
    )  # fmt: skip
  return fig


def write(
  config: TrainConfig, outcomes: Outcomes, out: pathlib.Path, plot: pathlib.Path
):
  """Writes the results file and the plot.

  The results are named after the file. If the plot cannot be drawn, it is left out and
  the reason is logged.

  Args:
    config: a config of the comparison.
    outcomes: the outcomes from `collect`.
    out: the path of the results file, JSON.
    plot: the path of the plot; its suffix determines the format.
  """
  results.write_results(out, out.stem, rows(config, outcomes))
  plot.parent.mkdir(parents=True, exist_ok=True)
  title = run_title({"model": model_name(config), "dataset": config.dataset})
  try:
    draw(config, outcomes, title).savefig(plot, dpi=160)
  except Exception as e:
    logging.warning("The plot %s is missing: %s: %s", plot, type(e).__name__, e)


def _height(accuracy):
  """Returns the vertical position of an accuracy; 100 % is drawn as 99.99 %."""
  return -np.log10(np.maximum(100 - np.asarray(accuracy, float), 0.01))


def _accuracy(height):
  return 100 - 10 ** -np.asarray(height, float)


def _ticks(low: float, high: float) -> list[float]:
  """Returns the ticks between two accuracies, with room for their labels."""
  ticks: list[float] = []
  room = 0.05 * (_height(high) - _height(low))
  for tick in reversed(_TICKS):
    if low <= tick <= high and (not ticks or _height(ticks[-1]) - _height(tick) > room):
      ticks.append(tick)
  return ticks


def _mean(values) -> tuple[float, float]:
  """Computes the mean and the standard error, which is zero for a single value."""
  values = np.asarray(values, float)
  spread = values.std(ddof=1) if len(values) > 1 else 0.0
  return float(values.mean()), float(spread / np.sqrt(len(values)))


def _explored(several: list[Outcome]) -> float | None:
  """Averages the exploration rate over the seeds that tracked it; None if none did."""
  known = [o.explored for o in several if o.explored is not None]
  return float(np.mean(known)) if known else None


def _costs(several: list[Outcome]) -> tuple[float | None, float | None]:
  """Averages the costs over the seeds whose costs are known; None if none is."""
  known = [(o.inference, o.training) for o in several if o.inference is not None]
  if not known:
    return None, None
  inference, training = np.mean(np.array(known, float), 0)
  return float(inference), float(training)
