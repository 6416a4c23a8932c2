r"""Writes one HTML page about a run, or about several for comparison.

  python scripts/report.py runs/digits
  python scripts/report.py runs/rigl runs/sparse_momentum --out=rigl_or_momentum.html

Each WORKDIR is the directory of a running or finished run, or a folder of runs from
scripts/compare.py. Runs that differ in their seeds alone are averaged. The page shows
error and loss, each layer's budget over time, turnover, step time, images of masks and
filters, multiply-adds and sizes, the configs, and the command, hardware and versions
that trained them. It is one file that needs no network. For runs with
--config.track_exploration=True it shows the share of weights that were ever live.
"""

import argparse
import pathlib
import sys

from absl import logging

from sparsejax.reports import PAGE_FILE, read_run, write_page
from sparsejax.training import TrainingError


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "workdir",
    nargs="+",
    type=pathlib.Path,
    help="directory of a run, or a folder of runs",
  )
  parser.add_argument(
    "--out",
    type=pathlib.Path,
    help="the page to write; default: report.html in WORKDIR, or, for several, here",
  )
  args = parser.parse_args()
  logging.set_verbosity(logging.ERROR)  # hide orbax's warnings about optional files
  alone = args.workdir[0] if len(args.workdir) == 1 else pathlib.Path()
  out = args.out or alone / PAGE_FILE
  try:
    runs = read_run(args.workdir, lambda line: print(line, file=sys.stderr))
    write_page(out, runs)
  except (TrainingError, OSError) as e:
    print(f"Error: {e}", file=sys.stderr)
    return 1
  what = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
  print(f"Wrote {out}, the report of {what}.")
  return 0


if __name__ == "__main__":
  sys.exit(main())
