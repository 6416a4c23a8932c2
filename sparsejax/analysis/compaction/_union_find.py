"""Union and find, on arrays of numbers."""

from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


class Union:
  """Numbers that are joined into groups; each group is known by its least."""

  def __init__(self, count: int):
    self._parent = np.arange(count)

  def __len__(self) -> int:
    return len(self._parent)

  def new(self, shape) -> np.ndarray:
    """An array of numbers that have not been there."""
    first, count = len(self), int(np.prod(shape, dtype=int))
    self._parent = np.concatenate([self._parent, np.arange(first, first + count)])
    return np.arange(first, first + count).reshape(shape)

  def find(self, units: np.ndarray) -> np.ndarray:
    """The least of the numbers that each has been joined with."""
    root = self._parent[units]
    while True:
      above = self._parent[root]
      if np.array_equal(above, root):
        return root
      root = above

  def join(self, left: np.ndarray, right: Any) -> None:
    """Joins two arrays, element by element; shapes are broadcast."""
    left, right = np.broadcast_arrays(self.find(left), self.find(np.asarray(right)))
    differ = left != right
    if not differ.any():
      return
    # Two units in one number: far quicker to make unique than rows are.
    pairs = np.unique(left[differ] * len(self) + right[differ])
    roots, place = np.unique(
      np.concatenate(np.divmod(pairs, len(self))), return_inverse=True
    )
    rows, columns = place[: len(pairs)], place[len(pairs) :]
    size = (len(roots), len(roots))
    graph = coo_array((np.ones(len(pairs)), (rows, columns)), size)
    count, group = connected_components(graph, directed=False)
    least = np.full(count, len(self))
    np.minimum.at(least, group, roots)
    self._parent[roots] = least[group]

  def join_along(self, units: np.ndarray, axes) -> np.ndarray:
    """Makes units the same along axes; gives them with size 1 there."""
    first = units[
      tuple(slice(1) if a in axes else slice(None) for a in range(units.ndim))
    ]
    self.join(units, first)
    return first
