"""Files of pruned layers, one per layer, from which a pruning can be resumed."""

import json
import os
import re
import types
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sparsejax.core import read_archive, write_archive

PyTree = Any
_WRITER = "post_training.prune"


def fingerprint(trees: Any, settings: dict[str, Any]) -> str:
  """Describes a pruning by text that must be equal for it to be resumed.

  Args:
    trees: pytree of arrays.
    settings: all other arguments, as JSON values.

  Returns:
    JSON text with the settings and a checksum of the arrays.
  """
  checksum = 0
  for leaf in jax.tree.leaves(trees):
    array = np.asarray(leaf)
    head = f"{array.dtype}{array.shape}".encode()
    checksum = zlib.crc32(array.tobytes(), zlib.crc32(head, checksum))
  return json.dumps({**settings, "arrays": checksum}, sort_keys=True)


def describe_function(function: Callable, *args: Any) -> str:
  """Returns a checksum of a function's trace, the same in every process."""
  text = re.sub(r"0x[0-9a-f]+", "", str(jax.make_jaxpr(function)(*args)))
  return f"{zlib.crc32(text.encode()):08x}"


def checksum_of_code(code: types.CodeType) -> int:
  """Returns a checksum of a Python function's code, without what it captures."""
  checksum = zlib.crc32(code.co_code, zlib.crc32(repr(code.co_names).encode()))
  for value in code.co_consts:
    if isinstance(value, types.CodeType):
      checksum = zlib.crc32(f"{checksum_of_code(value)}".encode(), checksum)
    else:
      checksum = zlib.crc32(repr(value).encode(), checksum)
  return checksum


def prepare(directory: str | os.PathLike, request: str) -> None:
  """Creates a directory for a request, or checks that it belongs to the same request.

  Args:
    directory: the directory; created if it does not exist.
    request: the text from `fingerprint`.

  Raises:
    ValueError: the directory contains layers of a different request.
  """
  os.makedirs(directory, exist_ok=True)
  path = os.path.join(directory, "request.npz")
  if not os.path.exists(path):
    write_archive(path, {"request": np.asarray(request)})
    return
  old = str(read_archive(path, _WRITER)["request"])
  if old != request:
    was, now = json.loads(old), json.loads(request)
    changed = {key: (was.get(key), now[key]) for key in now if was.get(key) != now[key]}
    raise ValueError(
      "directory must be empty or hold layers of the same pruning, got "
      f"{os.fspath(directory)!r}, which differs in {changed} (there, here)."
    )


def write_layer(
  directory: str | os.PathLike, number: int, arrays: dict[str, np.ndarray]
) -> None:
  """Writes one layer atomically."""
  write_archive(os.path.join(directory, f"layer_{number:05d}.npz"), arrays)


def read_layer(
  directory: str | os.PathLike, number: int
) -> dict[str, np.ndarray] | None:
  """Reads one layer, or None if it has not been written."""
  path = os.path.join(directory, f"layer_{number:05d}.npz")
  return read_archive(path, _WRITER) if os.path.exists(path) else None
