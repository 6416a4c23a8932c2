"""A union-find structure on arrays of numbers."""

from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


class Union:
  """Disjoint sets of numbers; the representative of each set is its smallest number."""

  def __init__(self, count: int):
    self._parent = np.arange(count)

  def __len__(self) -> int:
    return len(self._parent)

  def new(self, shape) -> np.ndarray:
    """Returns an array of new numbers, each in a set of its own."""
    first, count = len(self), int(np.prod(shape, dtype=int))
    self._parent = np.concatenate([self._parent, np.arange(first, first + count)])
    return np.arange(first, first + count).reshape(shape)

  def find(self, units: np.ndarray) -> np.ndarray:
    """Returns the representative of each number's set."""
    root = self._parent[units]
    while True:
      above = self._parent[root]
      if np.array_equal(above, root):
        return root
      root = above

  def join(self, left: np.ndarray, right: Any) -> None:
    """Joins the sets of two arrays element by element; shapes are broadcast."""
    left, right = np.broadcast_arrays(self.find(left), self.find(np.asarray(right)))
    differ = left != right
    if not differ.any():
      return
    # Encode each pair as one integer: `np.unique` is much faster on those than on rows.
    pairs = np.unique(left[differ] * len(self) + right[differ])
    roots, place = np.unique(
      np.concatenate(np.divmod(pairs, len(self))), return_inverse=True
    )
    # Merge the sets that the pairs connect, and point each old representative at the
    # smallest of its component.
    rows, columns = place[: len(pairs)], place[len(pairs) :]
    size = (len(roots), len(roots))
    graph = coo_array((np.ones(len(pairs)), (rows, columns)), size)
    count, group = connected_components(graph, directed=False)
    least = np.full(count, len(self))
    np.minimum.at(least, group, roots)
    self._parent[roots] = least[group]

  def join_along(self, units: np.ndarray, axes) -> np.ndarray:
    """Joins each number with the first along the axes; returns the first, size 1."""
    first = units[
      tuple(slice(1) if a in axes else slice(None) for a in range(units.ndim))
    ]
    self.join(units, first)
    return first
