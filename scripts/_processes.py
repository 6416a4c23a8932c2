"""Commands in several processes that are one run."""

import os
import socket
import subprocess
from collections.abc import Sequence


def run(
  command: Sequence[str], number: int, devices: int, timeout: float = 600
) -> list[tuple[int, str]]:
  """Runs a command in several processes of so many CPU devices, to the end.

  They find each other by the environment; see `training.parallel`.

  Args:
    command: the same in all.
    number: of processes; one is alone.
    devices: of each.
    timeout: seconds.

  Returns:
    For each its exit status, and all that it printed.

  Raises:
    subprocess.TimeoutExpired: they do not end; all are killed.
  """
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
  if number > 1:
    env["SPARSEJAX_COORDINATOR"] = f"localhost:{port}"
    env["SPARSEJAX_NUM_PROCESSES"] = str(number)
  running = [
    subprocess.Popen(
      command,
      env=env | ({"SPARSEJAX_PROCESS_ID": str(i)} if number > 1 else {}),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(number)
  ]
  # All pipes are read at once: a full one would stop its writer.
  try:
    outputs = [process.communicate(timeout=timeout)[0] for process in running]
  finally:
    for process in running:
      process.kill()
  return [(p.returncode, out) for p, out in zip(running, outputs, strict=True)]
