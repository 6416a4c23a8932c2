"""Writes and reads `environment.json`: what a run was trained with, and data shapes."""

import json
import pathlib
from typing import Any

import jax

from sparsejax.training import _provenance, _run, _workdir

FILE = "environment.json"


def record(path: pathlib.Path, run: _run.Run, step: int) -> None:
  """Records the environment in which a run is started or resumed.

  The file is `{"image_shape", "num_classes", "parts"}`. Each part is `{"step",
  "command", "commit", "date", "hardware", "versions"}`; one is added when the run
  starts, and when it resumes in a different environment. Only the first process writes.

  Args:
    path: the run's directory.
    run: the `Run` returned by `prepare`.
    step: updates done so far.
  """
  if jax.process_index() != 0:
    return
  now = _provenance.environment()
  # Parts of later steps were lost with their checkpoint.
  parts = [part for part in read(path).get("parts", []) if part["step"] <= step]
  if parts and all(parts[-1].get(name) == value for name, value in now.items()):
    return
  whole = {
    "image_shape": list(run.dataset.train.images.shape[1:]),
    "num_classes": run.dataset.num_classes,
    "parts": [*parts, {"step": step, **now}],
  }
  _workdir.write_text(path / FILE, json.dumps(whole, indent=1) + "\n")


def read(path: pathlib.Path) -> dict[str, Any]:
  """Returns the contents that `record` wrote; an empty dict if it cannot be read."""
  try:
    found = json.loads((path / FILE).read_text())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}
