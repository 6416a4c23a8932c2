r"""Times the network of a run: dense, masked, and deployed in its fastest formats.

  python scripts/latency.py runs/digits
  python scripts/latency.py runs/digits --batches=1,8 --rounds=200 --save=net.bin

WORKDIR is the directory of a run of scripts/train.py or scripts/compare.py that has a
checkpoint. For each batch size the network is deployed (`sparsejax.analysis.deploy`)
and timed in turns with the masked network, whose products are dense, and with the dense
one. The table has the median time of a call, its quartiles, and the speed-up over the
masked network. Run nothing else meanwhile.
"""

import argparse
import pathlib
import sys

import numpy as np
from absl import logging

from sparsejax import analysis, training


def _batches(text: str) -> list[int]:
  sizes = [int(part) for part in text.split(",")]
  if min(sizes) < 1:
    raise ValueError
  return sizes


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("workdir", type=pathlib.Path, help="the directory of a run")
  parser.add_argument(
    "--batches", type=_batches, default=[1, 32, 256], help="sizes, such as 1,32,256"
  )
  parser.add_argument("--rounds", type=int, default=50, help="timings per network")
  parser.add_argument("--seed-index", type=int, default=0, help="which of its seeds")
  parser.add_argument(
    "--save", type=pathlib.Path, help="file for the network of the last batch size"
  )
  args = parser.parse_args()
  logging.set_verbosity(logging.ERROR)  # hide orbax's warnings about optional files
  try:
    run = training.load_run(args.workdir, seed_index=args.seed_index)
    print(f"{'batch':>5}  {'network':8}  {'median ms':>9}  {'quartiles':>17}  speed-up")
    for batch in args.batches:
      images = run.normalize(np.zeros((batch, *run.image_shape), np.uint8))
      found = analysis.latency(
        lambda params, x: run.apply(params, run.model_state, x),
        run.params,
        run.masks,
        images,
        args.rounds,
      )
      for name, seconds in found.seconds.items():
        low, median, high = 1e3 * np.quantile(seconds, [0.25, 0.5, 0.75])
        ratio = float(np.median(found.seconds["masked"] / seconds))
        spread = f"{low:.3f} - {high:.3f}"
        print(f"{batch:5}  {name:8}  {median:9.3f}  {spread:>17}  {ratio:8.2f}")
      print(f"\n{found.deployed.table()}\n")
      if found.deployed.not_compact:
        print(f"Not compacted: {found.deployed.not_compact}\n")
    if args.save:
      found.deployed.save(args.save)
      print(f"Wrote {args.save}, the network for a batch of {args.batches[-1]}.")
  except (training.TrainingError, OSError, ValueError) as e:
    print(f"Error: {e}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
