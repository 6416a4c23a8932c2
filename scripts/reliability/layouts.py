"""Trials that compare whole digits runs on several device layouts with one device."""

import hashlib
import json
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import sparsejax as sj
from scripts import ROOT
from scripts.reliability import processes
from sparsejax.experiments import command_line
from sparsejax.training import (
  Checkpoints,
  Run,
  abstract_state,
  claim_workdir,
  config_to_json,
  initial_state,
  place_arrays,
  prepare,
)

# Two standard deviations of the difference of two seeds, from the config's docstring.
NOISE = 0.8


class Layout(NamedTuple):
  """Numbers of processes and devices, and the config fields that shard the run."""

  processes: int
  devices: int
  mesh: dict[str, Any]


ALONE = Layout(1, 1, {})
LAYOUTS = {
  "devices=8/data": Layout(1, 8, {"data": 8}),
  "processes=2/data": Layout(2, 4, {"data": 8}),
  "processes=2/fsdp": Layout(2, 4, {"data": 8, "fsdp": True}),
  "devices=8/fsdp": Layout(1, 8, {"data": 8, "fsdp": True}),
  "devices=8/tensor": Layout(1, 8, {"data": 2, "model": 4}),
}
VARIANTS = ("gradual_magnitude", "sparse_momentum")  # of `configs/digits.py`
RUNS = [(variant, layout) for layout in LAYOUTS for variant in VARIANTS]


class Trials:
  """Trains twice on a layout, and compares the runs with those on one device.

  Args:
    folder: folder of the runs, including those on one device.
    epochs: epochs of each run.
  """

  def __init__(self, folder: pathlib.Path, epochs: int = 50):
    self._folder, self._epochs = folder, epochs
    folder.mkdir(parents=True, exist_ok=True)

  def __call__(self, number: int) -> dict[str, Any]:
    """Runs one trial.

    Args:
      number: index into `RUNS`.

    Returns:
      `ok`: whether both runs are bit for bit the same, at least 99 % of the masks'
      entries are those of one device, and the accuracy differs by at most `NOISE`.
    """
    return self.compare(*RUNS[number])

  def compare(self, variant: str, name: str) -> dict[str, Any]:
    """Runs a trial; `nudged` is one device with one initial weight changed."""
    layout = LAYOUTS.get(name, ALONE)
    place = self._folder / f"{variant}_{name.replace('/', '_')}"
    parts = [place / "first", place / "second"]
    if name == "nudged":
      for part in parts:
        self._nudge(part, variant)
    alone = self._end(self._folder / f"{variant}_alone", variant, ALONE)
    first, second = (self._end(part, variant, layout) for part in parts)
    shutil.rmtree(place)
    masks, ours = alone["masks"], first["masks"]
    agree = 100 * float(np.mean(masks == ours))
    shared = 100 * float((masks & ours).sum() / masks.sum())
    more = first["accuracy"] - alone["accuracy"]
    same = first["digest"] == second["digest"]
    return {
      "ok": bool(same and agree >= 99 and abs(more) <= NOISE),
      "layout": f"{variant}/{name}",
      "masks_agree_percent": agree,
      "live_weights_shared_percent": shared,
      "test_accuracy_percent": first["accuracy"],
      "accuracy_difference_points": more,
      "repeated_bit_identical": same,
    }

  def _nudge(self, path: pathlib.Path, variant: str) -> None:
    """Writes a start whose first live weight is replaced by the next float."""
    if (path / "config.json").exists():
      return
    prepared = self._prepared(variant)
    state = initial_state(prepared, place_arrays(prepared.dataset.train))
    leaves, treedef = jax.tree.flatten(state.params)
    i = next(i for i, x in enumerate(leaves) if x.ndim > 1)
    weights = np.array(leaves[i])
    first = tuple(np.argwhere(weights)[0])
    weights[first] = np.nextafter(weights[first], np.float32(np.inf))
    leaves[i] = place_arrays(weights)
    stamp = config_to_json(prepared.config)
    checkpoints = Checkpoints(path, stamp)
    checkpoints.save(0, state._replace(params=treedef.unflatten(leaves)), {})
    checkpoints.close()
    claim_workdir(path, stamp)

  def _prepared(self, variant: str) -> Run:
    fields = command_line.load_config(ROOT / "configs/digits.py", variant)
    fields.num_epochs = self._epochs
    return prepare(fields)

  def _end(self, path: pathlib.Path, variant: str, layout: Layout) -> dict[str, Any]:
    """Trains, unless that is done; returns masks, accuracy and a digest."""
    command = [sys.executable, str(ROOT / "scripts/train.py"), f"--workdir={path}"]
    command.append(f"--config={ROOT / 'configs/digits.py'}:{variant}")
    command.append(f"--config.num_epochs={self._epochs}")
    command += [f"--config.mesh.{name}={n}" for name, n in layout.mesh.items()]
    if not (path / "summary.json").exists():
      done = processes.run(command, layout.processes, layout.devices, timeout=3_600)
      for code, output in done:
        if code:
          raise RuntimeError(f"{' '.join(command)} ended with {code}: {output}")
    prepared = self._prepared(variant)
    checkpoints = Checkpoints(path, config_to_json(prepared.config))
    try:
      restored = checkpoints.restore(abstract_state(prepared))
    finally:
      checkpoints.close()
    state: Any = None if restored is None else restored.state
    masks = jax.device_get(jax.tree.leaves(sj.masks(state.opt_state)))
    state = state._replace(key=jax.random.key_data(state.key))
    digest = hashlib.sha256()
    for x in jax.tree.leaves(jax.device_get(state)):
      digest.update(f"{x.dtype}{x.shape}".encode() + x.tobytes())
    summary = json.loads((path / "summary.json").read_text())
    return {
      "masks": np.concatenate([mask.ravel() for mask in masks]),
      "accuracy": 100 - float(np.mean(summary["test_error_percent"])),
      "digest": digest.hexdigest(),
    }


def nudged(folder: pathlib.Path) -> Callable[[int], dict[str, Any]]:
  """Measures the scale of `Trials`: the effect of the least change of a weight."""
  trials = Trials(folder.with_name("layouts"))
  return lambda number: trials.compare(VARIANTS[number], "nudged")
