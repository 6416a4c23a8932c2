"""Provenance: which command, commit, machine and versions made a figure."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
from typing import Any

import jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
# What no run reads: changes there leave the commit's mark alone.
_NOT_EXECUTED = ("results", "docs", "*.md")


def environment() -> dict[str, Any]:
  """Describes this process: command, commit, date, hardware and versions.

  Returns:
    JSON values; the commit is None outside of a checkout, and ends in `+` where the
    working tree differs from it (see `commit`).

  Example:
    >>> list(environment())
    ['command', 'commit', 'date', 'hardware', 'versions']
  """
  return {
    "command": _command(),
    "commit": commit(),
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "hardware": _hardware(),
    "versions": _versions(),
  }


def _command():
  script = pathlib.Path(sys.argv[0])
  words = [
    "python",
    "/".join(script.parts[-2:]) if script.is_absolute() else str(script),
  ]
  words += [re.sub(r"(^|=)/\S*/", r"\1", argument) for argument in sys.argv[1:]]
  return shlex.join(words)


def commit(digits: int = 40) -> str | None:
  """Returns the commit of the checkout that this package was imported from.

  The whole working tree counts: the library, configs, scripts, tests and whatever else
  a run may read, new files that git does not ignore included. Only what a run writes
  or nobody executes is left out: `results/`, `docs/` and Markdown files.

  Args:
    digits: how many of its hash are wanted; git takes more where they are ambiguous.

  Returns:
    Its hash, followed by `+` if the working tree differs from it; None outside of a
    checkout.

  Example:
    >>> found = commit(12)
    >>> found is None or len(found.removesuffix("+")) >= 12
    True
  """
  here = pathlib.Path(__file__).parent

  def git(*arguments):
    return subprocess.run(
      ["git", *arguments], cwd=here, capture_output=True, text=True, check=True
    ).stdout.strip()

  try:
    # Installed into an environment inside another project's checkout, it is not ours.
    git("ls-files", "--error-unmatch", pathlib.Path(__file__).name)
    # Paths with `top` are those of the whole tree, whatever the folder of this file.
    tree = [":(top)", *(f":(top,exclude){path}" for path in _NOT_EXECUTED)]
    changed = git("status", "--porcelain", "--", *tree)
    return git("rev-parse", f"--short={digits}", "HEAD") + ("+" if changed else "")
  except (OSError, subprocess.CalledProcessError):
    return None


def _hardware():
  """Cores and kind of the processor, and accelerators if there are any."""
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
  kind = platform.processor() or platform.machine()
  info = pathlib.Path("/proc/cpuinfo")
  if info.exists():
    found = re.search(r"model name\s*:\s*(.+)", info.read_text())
    kind = found.group(1).strip() if found else kind
  text = f"{cores or os.cpu_count()} cores of {kind}"
  if jax.default_backend() != "cpu":
    text += f"; {jax.device_count()} x {jax.devices()[0].device_kind}"
  return text


def _versions():
  versions = {"python": platform.python_version()}
  for package in (*_PACKAGES, "sparsejax"):
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return versions
