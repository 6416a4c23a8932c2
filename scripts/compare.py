r"""Compares methods by a grid of runs; writes a table, a plot and a results file.

  python scripts/compare.py --config=configs/digits.py --workdir=runs/compare \
    --methods=sparse_momentum,rigl,snip,dense --densities=0.05,0.1 --seeds=0,1,2

Every method uses the schedule of its paper (sparsejax/training/_methods.py) and the
recipe of the config, whose fields can be changed for all methods
(--config.num_epochs=10); `python scripts/train.py --help` explains them. Finished runs
are not repeated, and a stopped run resumes. Several processes with the same command
share the work; the last one to finish writes the whole table, which covers all finished
runs of the workdir. Compiled programs are kept in .compiled there, and may be deleted.
With --config.track_exploration=True it has a column with the exploration rate, the
fraction of the weights that was live at any time.

--sweep compares settings of any fields instead, for one variant of the config: the grid
of the values given, or with --random=20 so many random settings, from lists of values
and ranges. Settings are ranked by validation accuracy, with test accuracy beside it.

  python scripts/compare.py --config=configs/digits.py:rigl --workdir=runs/sweep \
    --sweep=learning_rate=0.03,0.1,0.3 --sweep=update_every=20,100 --seeds=0,1,2
  python scripts/compare.py --config=configs/digits.py:rigl --workdir=runs/random \
    --sweep=learning_rate=0.01..1 --sweep=drop_fraction=0.1..0.5 --random=20

--together is the number of seeds trained in one vectorized run. The default is all of
them on an accelerator (fewer if memory does not suffice), and one on a CPU, where more
are not faster. --write_only trains nothing. --keep adds the seeds that the file of
--out contains and the workdir lacks, for runs that were made elsewhere or have been
deleted.
"""

import pathlib
import sys

import jax
from absl import flags, logging
from ml_collections import config_flags

from sparsejax import training
from sparsejax.experiments import command_line
from sparsejax.experiments.comparison import (
  collect_cells,
  collect_sweep,
  comparison_table,
  grid_cells,
  keep_rows,
  parse_sweep,
  run_grid,
  run_sweep,
  sweep_settings,
  sweep_table,
  write_comparison,
  write_sweep,
)

_CONFIG = config_flags.DEFINE_config_file(
  "config", help_string="A config file, such as configs/digits.py."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
_METHODS = flags.DEFINE_list(
  "methods", None, "Names of methods; dense runs at density 1 only."
)
_DENSITIES = flags.DEFINE_list("densities", ["0.05"], "Fractions of live weights.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of each method and density.")
_TOGETHER = flags.DEFINE_integer(
  "together", None, "Seeds trained in one vectorized run.", 1
)
_OUT = flags.DEFINE_string("out", None, "The results file; default: in the workdir.")
_PLOT = flags.DEFINE_string("plot", None, "The plot; default: in the workdir.")
_KEEP = flags.DEFINE_bool("keep", False, "Keep seeds of --out that the workdir lacks.")
_SWEEP = flags.DEFINE_multi_string(
  "sweep", [], "A field and its values, or a range: learning_rate=0.1,0.03 or =0.01..1."
)
_RANDOM = flags.DEFINE_integer("random", None, "Number of random settings to draw.", 1)
_WRITE_ONLY = flags.DEFINE_bool(
  "write_only", False, "Train nothing; write the table of finished runs."
)


def make_config(method: str):
  """Returns the config's variant for a method, with the command line's overrides."""
  flag = flags.FLAGS["config"]
  path, *_ = config_flags.get_config_filename(flag).split(":")
  return command_line.override(command_line.load_config(path, method))


def train(workdir: pathlib.Path) -> None:
  if not _METHODS.value:
    sys.exit("Error: --methods must name at least one method.")
  seeds = [int(seed) for seed in _SEEDS.value]
  together = _TOGETHER.value
  if together is None:
    together = 1 if jax.default_backend() == "cpu" else len(seeds)
  busy = run_grid(
    make_config,
    workdir,
    grid_cells(_METHODS.value, [float(d) for d in _DENSITIES.value]),
    seeds,
    together=together,
    say=lambda line: print(line, flush=True),
    verbose=sys.stderr.isatty(),
  )
  for run in busy:
    print(f"Another process is still training {run}.")


def sweep(workdir: pathlib.Path) -> None:
  """Trains and reports a sweep."""
  settings = sweep_settings(parse_sweep(_SWEEP.value), _RANDOM.value)
  path, *variant = config_flags.get_config_filename(flags.FLAGS["config"]).split(":")
  if not _WRITE_ONLY.value:
    busy = run_sweep(
      lambda: command_line.override(command_line.load_config(path, *variant)),
      workdir,
      settings,
      [int(seed) for seed in _SEEDS.value],
      say=lambda line: print(line, flush=True),
      verbose=sys.stderr.isatty(),
    )
    for run in busy:
      print(f"Another process is still training {run}.")
  found = collect_sweep(workdir)
  if not found:
    sys.exit(f"Error: there is no finished run in {workdir}.")
  out = pathlib.Path(_OUT.value or workdir / "sweep.json")
  plot = pathlib.Path(_PLOT.value or workdir / "sweep.png")
  write_sweep(found, out, plot)
  print(f"\n{sweep_table(found)}\n\nWrote {out} and {plot}.")


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  workdir = pathlib.Path(_WORKDIR.value).expanduser().absolute()
  if _RANDOM.value and not _SWEEP.value:
    sys.exit("Error: --random needs the fields to draw, in --sweep.")
  try:
    if _SWEEP.value:
      sweep(workdir)
      return
    if not _WRITE_ONLY.value:
      train(workdir)
    config = training.complete_config(_CONFIG.value)
    outcomes = collect_cells(config, workdir)
    out = pathlib.Path(_OUT.value or workdir / "comparison.json")
    if _KEEP.value:
      outcomes = keep_rows(config, outcomes, out)
    if not outcomes:
      sys.exit(f"Error: there is no finished run in {workdir}.")
    plot = pathlib.Path(_PLOT.value or workdir / "comparison.png")
    write_comparison(config, outcomes, out, plot)
  except KeyboardInterrupt:
    print("Stopped after writing a checkpoint. The same command resumes.")
    sys.exit(130)
  except (training.TrainingError, OSError, ValueError) as e:
    sys.exit(f"Error: {e}")
  print(f"\n{comparison_table(config, outcomes)}\n")
  print(f"Wrote {out}{f' and {plot}' if plot.exists() else ''}.")


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  command_line.run(main)
