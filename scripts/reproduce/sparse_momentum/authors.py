"""Runs the authors' own program of sparse momentum on the data that we use.

  git clone https://github.com/TimDettmers/sparse_learning runs/sparse_learning
  python -m venv runs/torch && runs/torch/bin/pip install torch torchvision matplotlib
  python -m scripts.reproduce.sparse_momentum.authors --workdir=runs/authors \
    --program=runs/sparse_learning --python=runs/torch/bin/python

Its rows are those of results/mnist_sparse_momentum.json whose cases end in `/authors`.
The program is run as it is, with its defaults but for the rate where a case names one:
the published recipe, the last tenth of the training images held out, and the error on
the test images after the last epoch. Only where it runs is changed: not on a GPU, which
it takes for granted, and with images that are normalized once, not in each epoch by
eight processes. Finished runs are not repeated; one that was stopped starts again.
Three minutes a run on one CPU core (LeNet-300-100), or ten (LeNet-5).
--write_only writes the rows of finished runs.
"""

import json
import os
import pathlib
import re
import subprocess

import numpy as np
from absl import flags, logging

from scripts import ROOT
from scripts.reproduce.sparse_momentum.published import PAPER, SOURCE
from sparsejax.experiments import command_line, results
from sparsejax.training import data, environment

_PROGRAM = flags.DEFINE_string("program", "", "A clone of the authors' repository.")
_PYTHON = flags.DEFINE_string("python", "python", "A Python that has torchvision.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of TFDS's data sets.")
_OUT = flags.DEFINE_string(
  "out", str(ROOT / "results/mnist_sparse_momentum.json"), "The results file to write."
)
_CASES = flags.DEFINE_string(
  "cases", "", "A regular expression of cases; default: all."
)
_EPOCHS = flags.DEFINE_integer("epochs", 100, "Epochs per run.")
_WRITE_ONLY = flags.DEFINE_bool("write_only", False, "Run nothing; write the rows.")

# Arguments of the program, and seeds.
CASES = {
  "lenet300/density=0.05/authors": (["--model=lenet300-100"], 5),
  "lenet5/density=0.05/authors": (["--model=lenet5"], 2),
  "lenet5/density=0.05/authors/learning_rate=0.05": (
    ["--model=lenet5", "--lr=0.05"],
    2,
  ),
}
# Python imports it first: the program stays on the CPU, and loads images itself.
_SITE = """
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import MNIST

torch.Tensor.cuda = lambda self, *args, **kwargs: self

make, get, kept = DataLoader.__init__, MNIST.__getitem__, {}
def in_this_process(self, *args, **kwargs):
  make(self, *args, **kwargs | {"num_workers": 0, "pin_memory": False})
def once(self, index):
  key = id(self), int(index)
  if key not in kept:
    kept[key] = get(self, index)
  return kept[key]
DataLoader.__init__, MNIST.__getitem__ = in_this_process, once
"""
_TESTED = re.compile(r"Test evaluation: .* Accuracy: (\d+)/(\d+)")


def write_mnist(folder: pathlib.Path) -> None:
  """Writes MNIST as the files that torchvision would download."""
  folder.mkdir(parents=True, exist_ok=True)
  splits = data.load("mnist", _DATA_DIR.value, validation_fraction=0.0)
  for name, split in (("train", splits.train), ("t10k", splits.test)):
    images = np.asarray(split.images, np.uint8).reshape(-1, 28, 28)
    for kind, array in (("images", images), ("labels", split.labels)):
      array = np.asarray(array, np.uint8)
      header = np.array([0x0800 + array.ndim, *array.shape], ">i4").tobytes()
      file = folder / f"{name}-{kind}-idx{array.ndim}-ubyte"
      file.write_bytes(header + array.tobytes())


def test_error(log: str) -> float:
  """Returns the error after the last epoch, in percent.

  Raises:
    ValueError: the program has not come to its end.
  """
  found = _TESTED.findall(log)
  if len(found) != 1:
    raise ValueError(f"the log must have one test evaluation; it has {len(found)}")
  right, total = map(int, found[0])
  return 100 * (1 - right / total)


def output(*command: str) -> str:
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  return done.stdout.strip()


def run(case: str, seed: int) -> None:
  folder = pathlib.Path(_WORKDIR.value).absolute() / case / f"seed={seed}"
  if (folder / "summary.json").exists():
    return
  print(f"{case}, seed {seed}", flush=True)
  folder.mkdir(parents=True, exist_ok=True)
  write_mnist(folder.parent / "data/MNIST/raw")  # where the program looks for it
  program = pathlib.Path(_PROGRAM.value).absolute()
  python = _PYTHON.value
  if os.sep in python:
    python = str(pathlib.Path(python).absolute())
  command = [python, "-u", str(program / "mnist_cifar/main.py"), *CASES[case][0]]
  command += ["--no-cuda", "--density=0.05", "--save-model=model.pt"]
  command += [f"--seed={seed}", f"--epochs={_EPOCHS.value}"]
  (folder / "sitecustomize.py").write_text(_SITE)
  paths = os.pathsep.join(map(str, (folder, program, program / "mnist_cifar")))
  env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
  with open(folder / "log.txt", "w") as log:
    code = subprocess.call(command, cwd=folder, env=env, stdout=log, stderr=log)
  if code:
    raise SystemExit(f"The program ended with code {code}; see {folder / 'log.txt'}")
  summary = {
    "test_error_percent": test_error((folder / "log.txt").read_text()),
    "epochs": _EPOCHS.value,
    "commit": output("git", "-C", str(program), "rev-parse", "HEAD"),
    "torch": output(python, "-c", "import torch; print(torch.__version__)"),
    "run": environment(),
  }
  (folder / "summary.json").write_text(json.dumps(summary, indent=1))


def rows() -> list[dict]:
  table = []
  for case, (arguments, seeds) in CASES.items():
    folder = pathlib.Path(_WORKDIR.value) / case
    files = [folder / f"seed={seed}/summary.json" for seed in range(seeds)]
    found = [json.loads(file.read_text()) for file in files if file.exists()]
    if not found:
      continue
    paper, _, name = PAPER["/".join(case.split("/")[:2])]
    commits = ", ".join(sorted({summary["commit"] for summary in found}))
    table.append(
      results.row(
        case,
        "test_error_percent",
        [summary["test_error_percent"] for summary in found],
        paper=paper,
        source=SOURCE.format(name),
        note=f"github.com/TimDettmers/sparse_learning at {commits}, main.py"
        f" {' '.join(arguments)}, {found[0]['epochs']} epochs, PyTorch"
        f" {found[0]['torch']}",
        runs=[summary["run"] for summary in found],
      )
    )
  return results.merge_with_existing(table, _OUT.value)


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  chosen = [case for case in CASES if re.search(_CASES.value, case)]
  if not chosen:
    raise SystemExit(f"--cases must match a case, got {_CASES.value!r}")
  if not _WRITE_ONLY.value:
    if not (pathlib.Path(_PROGRAM.value) / "mnist_cifar/main.py").exists():
      raise SystemExit(
        "--program must be a clone of github.com/TimDettmers/sparse_learning, got"
        f" {_PROGRAM.value!r}"
      )
    for seed in range(max(CASES[case][1] for case in chosen)):
      for case in chosen:
        if seed < CASES[case][1]:
          run(case, seed)
  results.write_results(_OUT.value, "mnist_sparse_momentum", rows())
  print(f"Wrote {_OUT.value}.")


if __name__ == "__main__":
  command_line.run(main)
