"""Downloads and prepares data sets with TensorFlow Datasets, once.

  pip install --editable '.[data]'
  python scripts/prepare_data.py mnist --data_dir=~/tensorflow_datasets

Training reads the prepared files. It needs neither TensorFlow nor the network. The
archives of imagenet2012 must be downloaded by hand first, from https://image-net.org.
"""

import argparse
import importlib.util
import sys

from sparsejax.training import TrainingError, data
from sparsejax.training.data import data_root, find_prepared

# Data sets that come with a package, and archives that TFDS cannot download.
INSTALLED = {"digits": "scikit-learn", "text": "Python"}
ARCHIVES = {"imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")}


def main() -> int:
  names = [*data.NAMES, *data.NOT_IN_MEMORY]
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
    if name in INSTALLED:
      print(f"{name} needs no preparation: it comes with {INSTALLED[name]}.")
      continue
    try:
      print(f"{name} is prepared: {find_prepared(name, args.data_dir)}")
    except TrainingError:
      missing.append(name)
  if not missing:
    return 0
  root = data_root(args.data_dir)[0]
  if problem := obstacle(missing, root):
    print(f"Error: {problem}", file=sys.stderr)
    return 1
  import tensorflow_datasets as tfds

  for name in missing:
    builder = tfds.builder(name, data_dir=root, file_format="array_record")
    builder.download_and_prepare()
    print(f"{name} is prepared: {find_prepared(name, str(root))}")
  return 0


def obstacle(names, root) -> str:
  """Returns what keeps TFDS from preparing data sets; empty if nothing does."""
  manual = root / "downloads/manual"
  for name in names:
    absent = [file for file in ARCHIVES.get(name, ()) if not (manual / file).exists()]
    if absent:
      return (
        f"{name} must be downloaded by hand, from https://image-net.org. Put"
        f" {' and '.join(absent)} into {manual}, and run this command again."
      )
  if importlib.util.find_spec("tensorflow") is None:
    return (
      "TFDS prepares data sets with TensorFlow, which is not installed. From the root"
      " of the repository:\n  pip install --editable '.[data]'\nOnly this script needs"
      " it. Data sets that another machine prepared in the array_record format can be"
      " copied instead."
    )
  return ""


if __name__ == "__main__":
  sys.exit(main())
