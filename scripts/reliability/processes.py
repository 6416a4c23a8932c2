"""Runs commands in several processes that form one run."""

import os
import socket
import subprocess
from collections.abc import Sequence


def run(
  command: Sequence[str], number: int, devices: int, timeout: float = 600
) -> list[tuple[int, str]]:
  """Runs a command to the end in several processes, each with some CPU devices.

  The processes find each other by environment variables; see `training.parallel`.

  Args:
    command: the command, the same in all processes.
    number: number of processes; one runs alone.
    devices: devices per process.
    timeout: seconds.

  Returns:
    The exit status and the output of each process.

  Raises:
    subprocess.TimeoutExpired: the processes do not end in time; all are killed.
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
  # Read all pipes at once, because a full one would block its writer.
  try:
    outputs = [process.communicate(timeout=timeout)[0] for process in running]
  finally:
    for process in running:
      process.kill()
  return [(p.returncode, out) for p, out in zip(running, outputs, strict=True)]
