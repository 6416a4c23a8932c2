"""One of the processes that `test_distributed.py` starts: `folder`.

Who they are stands in the environment, as `scripts/train.py` reads it.
"""

import fcntl
import json
import pathlib
import resource
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sparsejax import training
from sparsejax.training import _checkpoint as checkpoint
from sparsejax.training import _metrics as metrics
from sparsejax.training import _workdir as workdir
from sparsejax.training.parallel import _distributed as distributed

STAMP = {"seed": 0}
# What cannot be written, and by which process; digests are the first one's alone.
SAVES = (("files", 0), ("files", 1), ("files", "all"), ("digests", 0))
# What cannot be read, and by which process.
RESTORES = (("digests", 0), ("digests", 1), ("state", 1), ("meta", 0))


def fails(message):
  raise OSError(message)


def kernel(step):
  return np.arange(512, dtype=np.float32).reshape(8, 64) + step


def state(step):
  """A kernel cut over all devices."""
  mesh = jax.make_mesh((jax.device_count(),), ("data",))
  return {
    "kernel": jax.device_put(kernel(step), NamedSharding(mesh, P("data"))),
    "step": jax.device_put(jnp.int32(step), NamedSharding(mesh, P())),
  }


def complaint(f, *args):
  """How the error of a call begins, or None."""
  try:
    f(*args)
  except training.TrainingError as e:
    return f"{type(e).__name__}: {e}"
  return None


def no_room(here):
  """Lets no file of this process grow from here on, as a full disk would."""
  if here:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))


def room():
  hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
  resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def save_with_an_error(folder, process, place):
  """What this process says of a save with an error, and what is left."""
  checkpoints = checkpoint.Checkpoints(folder, STAMP)
  checkpoints.save(10, state(10), {})
  here = process in (jax.process_index(), "all")
  digests = checkpoint._digests
  if place == "files":
    no_room(here)
  elif here:
    checkpoint._digests = lambda _: fails("[Errno 28] No space left on device")
  found = complaint(checkpoints.save, 20, state(20), {})
  room()
  checkpoint._digests = digests
  checkpoints.close()
  checkpoints = checkpoint.Checkpoints(folder, STAMP)
  steps = checkpoints.steps()
  restored = checkpoints.restore(state(0))
  local = restored.state["kernel"].addressable_shards
  good = all(np.array_equal(s.data, kernel(10)[s.index]) for s in local)
  checkpoints.save(30, state(30), {})
  again = checkpoints.steps()
  checkpoints.close()
  return {"said": found, "steps": steps, "good": good, "again": again}


def restore_with_an_error(folder, process, place):
  """What this process restores if one cannot read the newest checkpoint."""
  checkpoints = checkpoint.Checkpoints(folder, STAMP)
  for step in (10, 20):
    checkpoints.save(step, state(step), {"at": step})
  digests, manager = checkpoint._digests, checkpoints._manager
  if process == jax.process_index():
    if place == "digests":
      checkpoint._digests = lambda path: {} if path.name == "20" else digests(path)
    else:
      checkpoints._manager = Unreadable(manager, place)
  restored = checkpoints.restore(state(0))
  checkpoint._digests = digests
  local = restored.state["kernel"].addressable_shards
  good = all(np.array_equal(s.data, kernel(10)[s.index]) for s in local)
  left = checkpoints.steps()
  checkpoints.close()
  return {"extra": restored.extra, "lost": restored.lost, "good": good, "left": left}


class Unreadable:
  """Orbax's manager in a process that cannot read an item of step 20."""

  def __init__(self, manager, item):
    self.manager, self.item = manager, item

  def __getattr__(self, name):
    return getattr(self.manager, name)

  def restore(self, step, args):
    if step == 20 and self.item in args:
      fails(f"[Errno 5] Input/output error: {self.item}")
    return self.manager.restore(step, args=args)


def restore_of_what_one_does_not_see(folder):
  """What this process says if the second sees fewer checkpoints than the first."""
  checkpoints = checkpoint.Checkpoints(folder, STAMP)
  for step in (10, 20):
    checkpoints.save(step, state(step), {})
  if jax.process_index():
    checkpoints._manager.all_steps = lambda read=False: [10]
  found = complaint(checkpoints.restore, state(0))
  checkpoints.close()
  return found


def metrics_with_an_error(folder):
  """What a process says when the first cannot write its metrics."""
  folder.mkdir(exist_ok=True)
  with metrics.Writer(folder, -1) as writer:
    writer.write(1, {"loss": 1.0})
    no_room(jax.process_index() == 0)
    found = complaint(writer.write, 2, {"loss": 1.0})
    room()
  return found


def two_workdirs(folder, holds):
  """What a process says when another run holds the workdir of the first."""

  def enter():
    with workdir.exclusive(folder):
      pass

  with open(folder / ".lock", "a") as other:
    if holds and jax.process_index() == 0:
      fcntl.flock(other, fcntl.LOCK_EX)
    return complaint(enter)


def main(folder: pathlib.Path) -> None:
  found = {"joined": distributed.initialize(), "devices": jax.device_count()}
  for place, process in SAVES:
    name = f"{place} {process}"
    found[name] = save_with_an_error(folder / name, process, place)
  for place, process in RESTORES:
    name = f"unread {place} {process}"
    found[name] = restore_with_an_error(folder / name, process, place)
  found["unseen"] = restore_of_what_one_does_not_see(folder / "unseen")
  found["metrics"] = metrics_with_an_error(folder / "metrics")
  found["workdir free"] = two_workdirs(folder / "metrics", holds=False)
  found["workdir held"] = two_workdirs(folder / "metrics", holds=True)
  name = f"found{jax.process_index()}.json"
  (folder / name).write_text(json.dumps(found))


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
