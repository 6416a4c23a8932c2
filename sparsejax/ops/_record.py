"""A record of the products in a traced function, for `explain`."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

_HERE = threading.local()


@contextlib.contextmanager
def recording() -> Iterator[list[dict[str, Any]]]:
  """Collects one entry per product traced in the block, in the order of tracing."""
  before = getattr(_HERE, "entries", None)
  _HERE.entries = []
  try:
    yield _HERE.entries
  finally:
    _HERE.entries = before


def dense(shape: tuple[int, ...], block: tuple[int, int], reason: str) -> None:
  """Records a product that is dense for every mask, and the reason."""
  entries = getattr(_HERE, "entries", None)
  if entries is not None:
    entries.append({"shape": tuple(shape), "block": block, "reason": reason})


def sparse(
  shape: tuple[int, ...], block: tuple[int, int], blocks: Any, limit: int
) -> None:
  """Records a product whose path depends on its kernel, and the blocks of each run."""
  entries = getattr(_HERE, "entries", None)
  if entries is None:
    return
  entry: dict[str, Any] = {"shape": tuple(shape), "block": block, "limit": limit}
  entry |= {"reason": "", "runs": [], "visited": []}
  entries.append(entry)

  # Called at run time with the values of the list.
  def record(rows, starts, visited, wanted):
    entry["runs"].append((int(visited), int(wanted)))
    live = np.zeros((rows.size // (starts.size - 1), starts.size - 1), bool)
    for column in range(starts.size - 1):
      live[rows[starts[column] : starts[column + 1]], column] = True
    entry["visited"].append(live)

  jax.debug.callback(record, *blocks)
