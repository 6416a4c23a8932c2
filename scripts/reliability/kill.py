"""Trials that kill a digits run with SIGKILL at a random moment, and resume it."""

import dataclasses
import hashlib
import json
import multiprocessing
import multiprocessing.process
import os
import pathlib
import shutil
import signal
import sys
import time
from typing import Any

import jax
import numpy as np

from scripts import ROOT
from sparsejax import training
from sparsejax.experiments import command_line
from sparsejax.training import (
  Checkpoints,
  abstract_state,
  arrays_by_path,
  config_to_json,
  prepare,
  read_metrics,
)

_TEMPORARY = ".orbax-checkpoint-tmp"
# Fields that differ between any two runs.
_CLOCKS = ("seconds", "steps_per_second")


def settings(epochs: int) -> dict[str, Any]:
  """Returns fields of `configs/digits.py` for a run that often writes checkpoints."""
  return {
    "model_kwargs.features": (64, 32),
    "num_epochs": epochs,
    "update_every": 15,
    "log_every": 10,
    "checkpoint_every": 1,
  }


class Trials:
  """Kills a run at a random moment, resumes it, and compares the result.

  Args:
    folder: folder of the runs; an undisturbed run is made there first.
    epochs: epochs of each run; one has 40 steps and ends with a checkpoint.
  """

  def __init__(self, folder: pathlib.Path, epochs: int = 10):
    self._folder = folder
    config = command_line.load_config(ROOT / "configs/digits.py")
    config.update_from_flattened_dict(settings(epochs))
    self._prepared = prepare(config)
    self._target = abstract_state(self._prepared)
    folder.mkdir(parents=True, exist_ok=True)
    # Compile and import once for all runs: only what a run writes is under test.
    os.environ |= {
      "JAX_PLATFORMS": "cpu",
      "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
      "PYTHONPATH": str(ROOT),
    }
    self._server = multiprocessing.get_context("forkserver")
    self._server.set_forkserver_preload([__name__, "sklearn.datasets"])
    undisturbed = folder / "undisturbed"
    if not (undisturbed / "summary.json").exists():
      _finish(self._start(undisturbed))
    self._expected = self.outcome(undisturbed)

  def __call__(self, number: int) -> dict[str, Any]:
    """Runs one trial.

    Args:
      number: seeds the moment of the kill.

    Returns:
      `ok`, any differences, when the run was killed, and what it was doing then.
    """
    path = self._folder / f"killed{number}"
    rng = np.random.default_rng([8, number])
    while True:
      shutil.rmtree(path, ignore_errors=True)
      process = self._start(path)
      moment = self._wait(process, path, rng)
      process.kill()
      process.join()
      if process.exitcode == -signal.SIGKILL:
        break  # else it had ended before: another moment is drawn
    doing = _doing(path)
    _finish(self._start(path))
    outcome = self.outcome(path)
    shown = _log(path).read_text()
    differs = [k for k, v in self._expected.items() if outcome[k] != v]
    lost = [line for line in shown.splitlines() if line.startswith("Warning")]
    shutil.rmtree(path)
    _log(path).unlink()
    record = {"ok": not differs, "differs": differs, "moment": moment, "lost": lost}
    return {**record, "inside_write": doing != "between writes", "doing": doing}

  def outcome(self, path: pathlib.Path) -> dict[str, str]:
    """Returns digests of the last state's arrays, the metrics and the summary."""
    checkpoints = Checkpoints(path, config_to_json(self._prepared.config))
    try:
      restored = checkpoints.restore(self._target)
    finally:
      checkpoints.close()
    state: Any = None if restored is None else restored.state
    state = state._replace(key=jax.random.key_data(state.key))
    found = {}
    for name, x in arrays_by_path(state).items():
      x = np.asarray(x)
      text = f"{x.dtype}{x.shape}".encode()
      found[name] = hashlib.sha256(text + x.tobytes()).hexdigest()
    records = [_timeless(record) for record in read_metrics(path)]
    found["metrics"] = _digest(records)
    summary = json.loads((path / "summary.json").read_text())
    found["summary"] = _digest(_timeless(summary))
    return found

  def _start(self, path: pathlib.Path) -> multiprocessing.process.BaseProcess:
    fields = dataclasses.asdict(self._prepared.config)
    process = self._server.Process(target=_train, args=(fields, path))
    process.start()
    return process

  def _wait(self, process, path: pathlib.Path, rng: np.random.Generator) -> str:
    """Waits for a moment of a random kind; returns its description."""
    total = self._prepared.total_steps
    kind = rng.choice(["start", "step", "write", "write"])
    delay = float(rng.uniform(0, 0.1))
    step = int(rng.integers(0, total))
    if kind == "start":
      delay, step = float(rng.uniform(0, 2)), 0
      moment = f"{delay:.3f} s after the first file"
      condition = path.exists
    elif kind == "step":
      moment = f"{delay:.3f} s after step {step}"
      condition = lambda: _last_step(path) >= step
    else:
      moment = f"{delay:.3f} s into the first write after step {step}"
      condition = lambda: _writing(path, step)
    while process.is_alive() and not condition():
      time.sleep(0.001)
    time.sleep(delay)
    return moment


def _writing(path: pathlib.Path, step: int) -> bool:
  found = (p.name.partition(".")[0] for p in (path / "checkpoints").glob("*.*"))
  return any(name.isdigit() and int(name) > step for name in found)


def _last_step(path: pathlib.Path) -> int:
  records = read_metrics(path)
  return records[-1]["step"] if records else -1


def _doing(path: pathlib.Path) -> str:
  """Describes what a killed run has left unfinished."""
  folders = list((path / "checkpoints").glob("*"))
  if any(_TEMPORARY in p.name for p in folders):
    return "writing a checkpoint"
  if any(not (p / "digests.json").exists() for p in folders):
    return "writing a checkpoint's digests"
  return "between writes"


def _train(fields: dict[str, Any], path: pathlib.Path) -> None:
  """Runs training in a process of its own, with its output in a file."""
  with open(_log(path), "w", buffering=1) as log:
    os.dup2(log.fileno(), sys.stdout.fileno())
    os.dup2(log.fileno(), sys.stderr.fileno())
    training.train_and_evaluate(fields, path)


def _log(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(path.name + ".log")


def _finish(process: multiprocessing.process.BaseProcess) -> None:
  process.join()
  if process.exitcode:
    raise RuntimeError(f"a run ended with {process.exitcode}: see its log")


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
  return {k: v for k, v in record.items() if k not in _CLOCKS}


def _digest(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
