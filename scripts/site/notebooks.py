"""Executes the notebooks, and keeps each .ipynb equal to its .py.

  python -m scripts.site.notebooks            # in quick mode, as CI does
  python -m scripts.site.notebooks --pair     # write the .ipynb files, run nothing
  python -m scripts.site.notebooks --full --only=4 --images=plots
  python -m scripts.site.notebooks --site     # as well, keep the outputs for the site

A notebook is written as notebooks/*.py (py:percent); its .ipynb has the same cells and
no outputs. Quick mode sets SPARSEJAX_QUICK=1 and takes seconds per notebook. Needs the
`notebooks` extra.
"""

import base64
import os
import pathlib
import sys
import time

import jupytext
import nbformat
from absl import flags, logging
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from scripts import ROOT
from sparsejax.experiments import command_line

_PAIR = flags.DEFINE_bool("pair", False, "Write the .ipynb files and run nothing.")
_FULL = flags.DEFINE_bool("full", False, "Run at full length.")
_ONLY = flags.DEFINE_list(
  "only", None, "Beginnings of the names of the notebooks to run."
)
_SITE = flags.DEFINE_bool("site", False, "Write the results to docs/notebooks.")
_IMAGES = flags.DEFINE_string("images", None, "Folder for the figures, as PNG.")


def twin(path: pathlib.Path) -> str:
  """Returns the text of the .ipynb for a .py, without outputs and deterministic."""
  notebook = jupytext.read(path)
  for number, cell in enumerate(notebook.cells):
    cell["id"] = f"cell-{number}"
    if cell.cell_type == "code":
      cell.outputs, cell.execution_count = [], None
  return nbformat.writes(notebook) + "\n"


def run(path: pathlib.Path) -> float:
  """Executes a notebook and returns the seconds it took."""
  notebook = nbformat.reads(twin(path), as_version=4)
  started = time.monotonic()
  NotebookClient(
    notebook,
    kernel_name="python3",
    timeout=3600,
    startup_timeout=300,
    resources={"metadata": {"path": str(path.parent)}},
  ).execute()
  if _SITE.value:
    folder = ROOT / "docs/notebooks"
    folder.mkdir(exist_ok=True)
    (folder / f"{path.stem}.ipynb").write_text(nbformat.writes(notebook))
  if _IMAGES.value:
    folder = pathlib.Path(_IMAGES.value)
    folder.mkdir(parents=True, exist_ok=True)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    images = [o.get("data", {}).get("image/png") for o in outputs]
    for number, image in enumerate(filter(None, images), 1):
      (folder / f"{path.stem}_{number}.png").write_bytes(base64.b64decode(image))
  return time.monotonic() - started


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  paths = sorted((ROOT / "notebooks").glob("*.py"))
  if _ONLY.value:
    paths = [p for p in paths if p.name.startswith(tuple(_ONLY.value))]
  if not paths:
    sys.exit(f"Error: --only must begin the name of a notebook; got {_ONLY.value}")
  if not _FULL.value:
    os.environ["SPARSEJAX_QUICK"] = "1"
    # Most of a quick run is compilation, so it is made quick, as in conftest.py.
    os.environ["XLA_FLAGS"] = " ".join(
      (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
      )
    )
  for path in paths:
    copy = path.with_suffix(".ipynb")
    if _PAIR.value:
      copy.write_text(twin(path))
      continue
    if not copy.exists() or copy.read_text() != twin(path):
      sys.exit(
        f"Error: {copy.name} differs from {path.name}; run `python"
        " -m scripts.site.notebooks --pair`"
      )
    print(f"{path.name} ...", end=" ", flush=True)
    try:
      print(f"{run(path):.0f} s", flush=True)
    except CellExecutionError as e:
      sys.exit(f"\nError: {path.name} failed:\n{e}")


if __name__ == "__main__":
  command_line.run(main)
