"""Counts the bytes that a sparse network takes in storage."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from sparsejax.core import align

PyTree = Any
# Bytes of a row pointer or a column index, as in scipy.sparse.
_INDEX_BYTES = 4  # of a row pointer or a column index, as in scipy.sparse


class Sizes(NamedTuple):
  """Parameters, and bytes in three formats.

  Attributes:
    parameters: number of all parameters.
    live: weights whose mask is True, and all parameters without a mask.
    dense: bytes of all parameters in their dtypes.
    bitmask: bytes of one bit per weight plus the live values, for leaves with a mask.
    csr: bytes of compressed sparse rows, for leaves with a mask.
  """

  parameters: int
  live: int
  dense: int
  bitmask: int
  csr: int


def sizes(params: PyTree, masks: PyTree | None) -> Sizes:
  """Counts parameters and bytes.

  bitmask = ceil(n / 8) + live b,  csr = live (b + 4) + 4 (rows + 1)

  with n weights of b bytes. The rows of a kernel are all its axes but the last. Leaves
  without a mask, such as biases, count in full in every format; to count only the
  biases of live units, pass the masks of `live_parameters`.

  Args:
    params: pytree of arrays or abstract values.
    masks: the masks from `sj.masks`; None entries, or None, count as dense.

  Returns:
    `Sizes`.

  Raises:
    ValueError: the masks do not fit.

  Example:
    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.ones((4, 4)), "b": jnp.ones(4)}
    >>> sizes(params, {"w": jnp.eye(4, dtype=bool), "b": None})
    Sizes(parameters=20, live=8, dense=80, bitmask=34, csr=68)
  """
  leaves = jax.tree.leaves(params)
  entries = [None] * len(leaves)
  if masks is not None:
    entries = align(params, masks, strict=False)
  total = np.zeros(5, np.int64)
  for leaf, mask in zip(leaves, entries, strict=True):
    size, item = math.prod(leaf.shape), np.dtype(leaf.dtype).itemsize
    if mask is None:
      total += (size, size, size * item, size * item, size * item)
      continue
    live = int(np.count_nonzero(mask))
    rows = math.prod(leaf.shape[:-1])
    csr = live * (item + _INDEX_BYTES) + _INDEX_BYTES * (rows + 1)
    total += (size, live, size * item, -(-size // 8) + live * item, csr)
  return Sizes(*map(int, total))
