"""One file per pruned layer, so that a pruning can be resumed."""

import json
import os
import zlib
from typing import Any

import jax
import numpy as np

from sparsejax.core import read_archive, write_archive

PyTree = Any
_WRITER = "post_training.prune"


def fingerprint(trees: Any, settings: dict[str, Any]) -> str:
  """What must be the same for a pruning to be resumed, as text.

  Args:
    trees: pytree of arrays.
    settings: everything else, as values of JSON.

  Returns:
    JSON with a checksum of the arrays.
  """
  checksum = 0
  for leaf in jax.tree.leaves(trees):
    array = np.asarray(leaf)
    head = f"{array.dtype}{array.shape}".encode()
    checksum = zlib.crc32(array.tobytes(), zlib.crc32(head, checksum))
  return json.dumps({**settings, "arrays": checksum}, sort_keys=True)


def prepare(directory: str | os.PathLike, request: str) -> None:
  """Makes a directory for a request, or checks that it holds the same.

  Args:
    directory: made if it is not there.
    request: from `fingerprint`.

  Raises:
    ValueError: it holds layers of another request.
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
  """Writes one layer; a reader sees it whole or not at all."""
  write_archive(os.path.join(directory, f"layer_{number:05d}.npz"), arrays)


def read_layer(
  directory: str | os.PathLike, number: int
) -> dict[str, np.ndarray] | None:
  """Reads one layer, or None if it has not been written."""
  path = os.path.join(directory, f"layer_{number:05d}.npz")
  return read_archive(path, _WRITER) if os.path.exists(path) else None
