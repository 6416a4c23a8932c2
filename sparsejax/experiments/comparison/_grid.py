"""Grids of runs over methods, densities and seeds; several processes can share one."""

import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from sparsejax.core import did_you_mean
from sparsejax.experiments import results
from sparsejax.experiments.comparison._programs import shared_programs
from sparsejax.training import (
  METHODS,
  RESULT_FILE,
  ConfigError,
  TrainConfig,
  WorkdirError,
  WorkdirInUseError,
  complete_config,
  config_difference,
  config_to_json,
  cost_history,
  data,
  estimate_costs,
  format_percent,
  model_uses,
  read_json,
  read_metrics,
  train_and_evaluate,
)


class Cell(NamedTuple):
  """One method at one density."""

  method: str
  density: float


class Outcome(NamedTuple):
  """The result of one seed of a cell.

  Attributes:
    accuracy: accuracy on the test images, percent.
    inference: multiply-adds of the final network divided by the dense one's; None if
      they cannot be counted.
    training: multiply-adds of the whole run divided by a dense run's, or None.
    steps: training steps of the run.
    runs: the environments it was trained in, from `results.trained_in`.
    explored: weights that were ever live divided by all, the exploration rate R_s of
      `sj.exploration_rate`; None if the run did not track it.
  """

  accuracy: float
  inference: float | None
  training: float | None
  steps: int
  runs: tuple[Mapping[str, Any], ...]
  explored: float | None = None


def cells(methods: Sequence[str], densities: Sequence[float]) -> list[Cell]:
  """Returns the cells of a grid; dense training has a single cell, at density 1.

  Args:
    methods: names in `METHODS`.
    densities: densities in (0, 1].

  Returns:
    One cell per method and density, ordered by method, then by density.

  Raises:
    ConfigError: a method or a density is invalid; the message names it.

  Example:
    >>> len(cells(["rigl", "dense"], [0.01, 0.05]))
    3
  """
  for method in methods:
    if method not in METHODS:
      raise ConfigError(
        f"methods must be of {', '.join(METHODS)}; got {method!r}"
        + did_you_mean(method, METHODS)
      )
  for density in densities:
    if not 0 < density <= 1:
      raise ConfigError(f"densities must be in (0, 1]; got {density}")
  return [
    Cell(method, density)
    for method in dict.fromkeys(methods)
    for density in ([1.0] if method == "dense" else sorted(set(densities)))
  ]


def model_name(config: TrainConfig) -> str:
  """Returns a model's name, followed by its depth and width if they are given."""
  kwargs = config.model_kwargs
  sizes = [str(kwargs[name]) for name in ("depth", "width") if name in kwargs]
  return "_".join([config.model, *sizes])


def run_grid(
  make_config: Callable[[str], Any],
  workdir: pathlib.Path,
  grid: Sequence[Cell],
  seeds: Sequence[int],
  *,
  together: int = 1,
  say: Callable[[str], None] = print,
  verbose: bool = False,
) -> list[str]:
  """Trains all seeds that are not finished, the first seeds of all cells first.

  Each run has its own directory, `<workdir>/<method>/density=<d>/seeds=<first>-<last>`,
  which a process locks while it trains. Runs locked by other processes are skipped, so
  several processes with the same arguments share the work, and the programs that they
  compile, in `<workdir>/.compiled`: a second seed of a cell compiles nothing.

  Args:
    make_config: `(method) -> ConfigDict`; density and seeds are set by this function.
    workdir: the folder of all runs.
    grid: the cells, from `cells`.
    seeds: the seeds to train.
    together: the number of consecutive seeds to train in one run, by `vmap`. If memory
      runs out, the seeds of a run are halved until they fit.
    say: called with one line per finished run.
    verbose: whether to show the progress of each run too.

  Returns:
    The runs that other processes are training; empty if all runs are finished.

  Raises:
    TrainingError: a finished run of the folder, in the grid or not, has another recipe;
      or as raised by `train_and_evaluate`.
    KeyboardInterrupt: a signal stopped a run; its checkpoint has been written.
  """
  # The table has all runs of the folder, also those that are not in this grid.
  for cell in _cells_in(workdir):
    _check_same(_config(make_config, cell), finished_seeds(folder(workdir, cell)))
  # Go through the unfinished runs until all are finished, or all those left are locked
  # by other processes.
  jobs = [(cell, group) for group in _groups(seeds, together) for cell in grid]
  left, done = list(jobs), 0
  while left:
    held: list[tuple[Cell, list[int]]] = []
    for cell, group in left:
      config = _config(make_config, cell)
      done_seeds = finished_seeds(folder(workdir, cell))
      _check_same(config, done_seeds)
      missing = [seed for seed in group if seed not in done_seeds]
      try:
        if missing:
          with shared_programs(workdir):
            line = _train(config, workdir, cell, missing, verbose)
          say(f"{line}  [{done + 1} of {len(jobs)}]")
        done += 1
      except WorkdirInUseError:
        held.append((cell, group))
    if len(held) == len(left):
      return [f"{c.method} at {c.density:g}, seeds {_span(g)}" for c, g in held]
    left = held
  return []


def folder(workdir: pathlib.Path, cell: Cell) -> pathlib.Path:
  """Returns the folder of a cell's runs."""
  return workdir / cell.method / f"density={cell.density:g}"


def finished_seeds(cell_folder: pathlib.Path) -> dict[int, tuple[pathlib.Path, int]]:
  """Returns, for each finished seed, its run and its index in the run.

  Args:
    cell_folder: the cell's folder, from `folder`.

  Returns:
    `{seed: (run directory, index)}`, in ascending order.
  """
  found = {}
  for summary in sorted(cell_folder.glob(f"seeds=*/{RESULT_FILE}")):
    config = json.loads((summary.parent / "config.json").read_text())
    for index in range(config["num_seeds"]):
      found[config["seed"] + index] = (summary.parent, index)
  return dict(sorted(found.items()))


def collect(
  config: TrainConfig, workdir: pathlib.Path
) -> dict[Cell, dict[int, Outcome]]:
  """Reads the outcomes of all finished runs in a folder.

  Args:
    config: a complete config of the comparison, for the model and the data set.
    workdir: the folder of all runs, as in `run_grid`.

  Returns:
    The outcomes by cell, then by seed. Cells are in the order of `METHODS`. Costs that
    cannot be counted are None, and the reason is logged.
  """
  try:
    uses, sizes = _counts(config)
  except Exception as e:  # report accuracies even if costs cannot be counted
    logging.warning("Multiply-adds are missing: %s: %s", type(e).__name__, e)
    uses, sizes = None, {}
  outcomes = {}
  for cell in _cells_in(workdir):
    found = {
      seed: _outcome(run, index, uses, sizes, cell.method)
      for seed, (run, index) in finished_seeds(folder(workdir, cell)).items()
    }
    if found:
      outcomes[cell] = found
  return outcomes


def _cells_in(workdir: pathlib.Path) -> list[Cell]:
  """Returns the cells that have a folder, ordered as `METHODS`, then by density."""
  return [
    Cell(method, density)
    for method in METHODS
    for density in sorted(
      float(place.name.removeprefix("density="))
      for place in (workdir / method).glob("density=*")
    )
  ]


def _config(make_config: Callable[[str], Any], cell: Cell) -> Any:
  config = make_config(cell.method)
  config.density = cell.density
  return config


def _check_same(config, done: dict[int, tuple[pathlib.Path, int]]) -> None:
  wanted = config_to_json(complete_config(config))
  for seed, (run, _) in done.items():
    found = json.loads((run / "config.json").read_text())
    same = {"seed": found["seed"], "num_seeds": found["num_seeds"]}
    changed = config_difference(found, {**wanted, **same})
    if changed:
      raise WorkdirError(
        f"{run} holds seed {seed} of another comparison. What differs (there -> asked"
        " for):\n  " + "\n  ".join(changed) + "\nGive another --workdir."
      )


def _train(config, workdir, cell, seeds, verbose) -> str:
  config.update(seed=seeds[0], num_seeds=len(seeds))
  path = folder(workdir, cell) / f"seeds={_span(seeds)}"
  try:
    outcome = train_and_evaluate(config, path, verbose, summarize=False)
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e) or len(seeds) == 1:
      raise
    half = math.ceil(len(seeds) / 2)
    parts = (seeds[:half], seeds[half:])
    return "\n".join(_train(config, workdir, cell, part, verbose) for part in parts)
  if not outcome.finished:
    raise KeyboardInterrupt
  accuracy = format_percent(outcome.test_accuracy)
  return (
    f"{cell.method}, density {cell.density:g}, seed {_span(seeds)}: {accuracy}"
    f" in {outcome.seconds:.0f} s"
  )


def _groups(seeds: Sequence[int], together: int) -> Iterable[list[int]]:
  """Yields groups of at most `together` consecutive seeds, each for one run."""
  group: list[int] = []
  for seed in sorted(set(seeds)):
    if group and (len(group) == together or seed != group[-1] + 1):
      yield group
      group = []
    group.append(seed)
  if group:
    yield group


def _span(seeds: Sequence[int]) -> str:
  return str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]}-{seeds[-1]}"


def _counts(config: TrainConfig) -> tuple[dict[str, int], dict[str, int]]:
  """Returns how often one example uses each weight, and each layer's size."""
  dataset = data.load(config.dataset, config.data_dir, config.validation_fraction)
  shape = dataset.train.images.shape[1:]
  return model_uses(config.model, config.model_kwargs, shape, dataset.num_classes)


def _outcome(run, index, uses, sizes, method) -> Outcome:
  summary = read_json(run / RESULT_FILE)
  records = read_metrics(run)
  explored = [record["explored"] for record in records if "explored" in record]
  inference = training = None
  if uses is not None:
    try:
      history = cost_history(records, index)
      inference, training = estimate_costs(history, uses, sizes, method)
    except Exception as e:
      error = type(e).__name__
      logging.warning("Multiply-adds of %s are missing: %s: %s", run, error, e)
  return Outcome(
    accuracy=100 - summary["test_error_percent"][index],
    inference=inference,
    training=training,
    steps=summary["step"],
    runs=tuple(results.trained_in([run])),
    explored=float(np.atleast_1d(explored[-1])[index]) if explored else None,
  )
