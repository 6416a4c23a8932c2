"""Joins the processes of a run, and lets them synchronize flags and errors."""

import contextlib
import hashlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from sparsejax.training import _errors, _interrupt

_ENVIRONMENT = (
  "SPARSEJAX_COORDINATOR",
  "SPARSEJAX_NUM_PROCESSES",
  "SPARSEJAX_PROCESS_ID",
)


def initialize(
  coordinator: str = "",
  num_processes: int | None = None,
  process_id: int | None = None,
  environment: Mapping[str, str] | None = None,
) -> bool:
  """Joins the other processes of the run, if there are any.

  Call it before JAX is used. The processes are determined by the first of these that is
  given: the arguments; the environment variables SPARSEJAX_COORDINATOR,
  SPARSEJAX_NUM_PROCESSES and SPARSEJAX_PROCESS_ID; the variables that SLURM, Open MPI
  or a TPU pod set, which JAX reads itself.

  Args:
    coordinator: `host:port` of process 0. The port must be free there, and reachable
      from all processes.
    num_processes: the number of processes in the run.
    process_id: the number of this process, counted from 0.
    environment: replaces `os.environ`.

  Returns:
    Whether `jax.distributed` was initialized.

  Raises:
    ConfigError: if only some of the three are given, if they are not valid, or if the
      processes do not find each other.

  Example:
    >>> initialize(environment={})
    False
  """
  env = os.environ if environment is None else environment
  given: tuple[Any, ...] = coordinator or None, num_processes, process_id
  names = ("coordinator", "num_processes", "process_id")
  # The arguments, else the variables of this project; all three or none.
  if given == (None,) * 3:
    names = _ENVIRONMENT
    given = tuple(env.get(name) for name in names)
  if any(value is not None for value in given):
    if any(value is None for value in given):
      missing = [n for n, v in zip(names, given, strict=True) if v is None]
      raise _errors.ConfigError(
        f"{', '.join(names)} must be given together; got no {' and no '.join(missing)}"
      )
    address, number, this = str(given[0]), _integer(names[1], given[1]), given[2]
    this = _integer(names[2], this)
    if not 0 <= this < number:
      raise _errors.ConfigError(
        f"{names[2]} must be in [0, {names[1]}), with {number} processes; got {this}"
      )
    if ":" not in address:
      raise _errors.ConfigError(f"{names[0]} must be host:port; got {address!r}")
    return _join(coordinator_address=address, num_processes=number, process_id=this)
  # A cluster with more than one process, whose addresses JAX detects by itself. It is
  # asked only then: on a single machine its detection raises an error, and for a job of
  # one process it opens a port.
  several = (
    int(env.get("SLURM_NTASKS", "1") if "SLURM_PROCID" in env else "1") > 1
    or int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
    or "," in env.get("TPU_WORKER_HOSTNAMES", "")
  )
  return several and _join()


def _join(**arguments: Any) -> bool:
  try:
    jax.distributed.initialize(**arguments)
  except (RuntimeError, ValueError) as e:
    raise _errors.ConfigError(f"the processes of the run do not meet: {e}") from e
  return True


def _integer(name: str, value: Any) -> int:
  try:
    return int(value)
  except ValueError:
    raise _errors.ConfigError(f"{name} must be an integer; got {value!r}") from None


def check_same(name: str, text: str) -> None:
  """Raises unless all processes have the same text.

  Args:
    name: the text's name in the error message.
    text: this process's text.

  Raises:
    ConfigError: if a process has another text than process 0; names both hashes.
  """
  if jax.process_count() == 1:
    return
  from jax.experimental import multihost_utils

  digest = hashlib.sha256(text.encode()).digest()[:4]
  mine = np.frombuffer(digest, np.uint32)
  all_: Any = multihost_utils.process_allgather(mine)
  all_ = np.asarray(all_).ravel()
  if len(set(all_.tolist())) > 1:
    other = int(np.flatnonzero(all_ != all_[0])[0])
    raise _errors.ConfigError(
      f"{name} must be the same in all processes; got {int(all_[0]):#010x} in process 0"
      f" and {int(all_[other]):#010x} in process {other}"
    )


def wait(what: str) -> None:
  """Waits until all processes have called this function.

  Args:
    what: the name of the barrier, the same in all processes.
  """
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(what)


@contextlib.contextmanager
def sync_errors(describe: Callable[[Exception], str] = str) -> Iterator[None]:
  """Raises in all processes if the block raises in one of them.

  The processes either all leave the block, or all raise. A process with an error enters
  a barrier of another name than the one at which the others wait, inside the block or
  at its end, and JAX reports the mismatch to all. The block must therefore contain no
  other communication between processes than barriers.

  Args:
    describe: returns the text of an error that the other processes raise.

  Yields:
    Nothing.

  Raises:
    TrainingError: if another process had an error; gives its number and its text.

  Example:
    >>> with sync_errors():
    ...   print("done")
    done
  """
  if jax.process_count() == 1:
    yield
    return
  try:
    yield
    wait("all is well")
  except Exception as e:
    # A mismatch of barriers means that the error is another process's.
    own = _MISMATCH not in str(e)
    if own:
      with contextlib.suppress(AssertionError):
        wait("one process has an error")
    process, words = _first_error((describe(e) or type(e).__name__) if own else "")
    if own:
      raise
    raise _errors.TrainingError(f"process {process}: {words}") from None


_MISMATCH = "sync_global_devices name mismatch"  # JAX's message
_LONGEST = 1_000  # bytes of an error's text that are sent to the other processes


def _first_error(words: str) -> tuple[int, str]:
  """Exchanges error texts, empty without an error; returns the first, with process."""
  from jax.experimental import multihost_utils

  text = words.encode()[:_LONGEST]
  mine = np.zeros(_LONGEST, np.uint8)
  mine[: len(text)] = np.frombuffer(text, np.uint8)
  all_ = np.asarray(multihost_utils.process_allgather(mine))
  process = int(np.argmax(all_.any(-1)))
  return process, bytes(all_[process]).rstrip(b"\0").decode(errors="ignore")


def all_processes(flag: bool) -> bool:
  """Returns whether a flag is true in every process.

  Args:
    flag: this process's flag.

  Returns:
    The conjunction of the flags, in all processes.

  Example:
    >>> all_processes(True)
    True
  """
  if jax.process_count() == 1:
    return flag
  from jax.experimental import multihost_utils

  return bool(np.all(np.asarray(multihost_utils.process_allgather(np.bool_(flag)))))


def any_process(stop: _interrupt.Stop) -> bool:
  """Returns whether any process was asked to stop, in all processes at the same step.

  Args:
    stop: this process's flag; it is set to the signal that another process received.

  Returns:
    Whether to stop.
  """
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    mine = np.int32(stop.signal or 0)
    asked = int(np.max(np.asarray(multihost_utils.process_allgather(mine))))
    if asked:
      stop.signal = signal.Signals(asked)
  return bool(stop)
