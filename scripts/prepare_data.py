"""Downloads and prepares data sets with TensorFlow Datasets, once.

  pip install 'sparsejax[data]'
  python scripts/prepare_data.py mnist --data_dir=~/tensorflow_datasets

Training reads the prepared files. It needs neither TensorFlow nor the network.
"""

import argparse
import importlib.util
import sys

from sparsejax.training import TrainingError, data
from sparsejax.training.data import data_root, find_prepared


def main() -> int:
  names = [name for name in data.NAMES if name != "digits"]
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "names",
    nargs="+",
    choices=names,
    metavar="name",
    help=f"one or more of {', '.join(names)}",
  )
  parser.add_argument(
    "--data_dir",
    default="",
    help="folder of the data sets; default: TFDS_DATA_DIR, else that of TFDS",
  )
  args = parser.parse_args()
  # Report the data sets that are prepared already; only the others need TensorFlow.
  missing = []
  for name in args.names:
    try:
      print(f"{name} is prepared: {find_prepared(name, args.data_dir)}")
    except TrainingError:
      missing.append(name)
  if not missing:
    return 0
  if importlib.util.find_spec("tensorflow") is None:
    print(
      "Error: TFDS prepares data sets with TensorFlow, which is not installed:\n"
      "  pip install 'sparsejax[data]'\n"
      "Only this script needs it. Data sets that another machine prepared in the"
      " array_record format can be copied instead.",
      file=sys.stderr,
    )
    return 1
  import tensorflow_datasets as tfds

  root = data_root(args.data_dir)[0]
  for name in missing:
    builder = tfds.builder(name, data_dir=root, file_format="array_record")
    builder.download_and_prepare()
    print(f"{name} is prepared: {find_prepared(name, str(root))}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
