"""`environment.json`: what a run was trained by, and the shape of what it saw."""

import json
import pathlib
from typing import Any

import jax

from sparsejax.training import _provenance, _run, _workdir

FILE = "environment.json"


def record(path: pathlib.Path, run: _run.Run, step: int) -> None:
  """Notes in a run's directory by what it goes on, unless that is noted already.

  The file is `{"image_shape", "num_classes", "parts"}`: one part each time a run was
  started or goes on elsewhere, `{"step", "command", "commit", "date", "hardware",
  "versions"}`. Other processes than the first write nothing.

  Args:
    path: the run's directory.
    run: what is trained.
    step: updates done so far.
  """
  if jax.process_index() != 0:
    return
  now = _provenance.environment()
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
  """Returns what `record` wrote; an empty dict where there is nothing to read."""
  try:
    found = json.loads((path / FILE).read_text())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}
