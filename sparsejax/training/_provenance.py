"""Describes the command, commit, hardware and versions that produced a result."""

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
# Files that no run reads: changes to them do not mark the commit with `+`.
_NOT_EXECUTED = ("results", "docs", "*.md")


def environment() -> dict[str, Any]:
  """Describes this process: command, commit, date, hardware and versions.

  Returns:
    JSON values; the commit is None outside a checkout, and ends in `+` if the working
    tree differs from it (see `commit`).

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
  """Returns the command line without the folders of absolute paths."""
  script = pathlib.Path(sys.argv[0])
  spec = getattr(sys.modules["__main__"], "__spec__", None)
  if spec is not None and spec.origin == sys.argv[0]:
    # `python -m package.module` gives the path of the module as the first argument.
    words = ["python", "-m", spec.name.removesuffix(".__main__")]
  else:
    path = "/".join(script.parts[-2:]) if script.is_absolute() else str(script)
    words = ["python", path]
  words += [re.sub(r"(^|=)/\S*/", r"\1", argument) for argument in sys.argv[1:]]
  return shlex.join(words)


def commit(digits: int = 40) -> str | None:
  """Returns the commit of the checkout from which this package was imported.

  The commit is marked with `+` if any file of the working tree differs from it, or is
  new and not ignored by git. Files that a run writes or nobody executes do not count:
  `results/`, `docs/` and Markdown files.

  Args:
    digits: the number of digits of the hash; git returns more if these are ambiguous.

  Returns:
    The hash, followed by `+` if the working tree differs; None outside a checkout.

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
    # Raises if git does not track this file, as when the package is installed inside
    # another project's checkout.
    git("ls-files", "--error-unmatch", pathlib.Path(__file__).name)
    # `top` makes paths relative to the root of the checkout.
    tree = [":(top)", *(f":(top,exclude){path}" for path in _NOT_EXECUTED)]
    changed = git("status", "--porcelain", "--", *tree)
    return git("rev-parse", f"--short={digits}", "HEAD") + ("+" if changed else "")
  except (OSError, subprocess.CalledProcessError):
    return None


def _hardware():
  """Returns the processor's cores and model, and the accelerators if there are any."""
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
  """Returns the versions of Python and of the installed packages."""
  versions = {"python": platform.python_version()}
  for package in (*_PACKAGES, "sparsejax"):
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return versions
