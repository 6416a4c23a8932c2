"""Products with kernels in compressed sparse rows.

This is the only module that uses `jax.experimental.sparse`, whose CSR product is a
compiled function of jaxlib on CPUs.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import sparse

Array = jax.Array

# The functions of jaxlib that an exported program calls. `jax.export` does not promise
# that later versions of jaxlib have them.
CUSTOM_CALLS = ("cpu_csr_sparse_dense_ffi",)


def csr_product(kernel: np.ndarray) -> Callable[[Array], Array]:
  """Returns a product with a constant kernel, stored by its nonzero weights.

  y = (csr(kernel^T) x^T)^T

  Args:
    kernel: float32 (inputs, outputs).

  Returns:
    A function from x, float32 (rows, inputs), to y (rows, outputs).

  Example:
    >>> product = csr_product(np.array([[1.0, 0.0], [0.0, 2.0]], np.float32))
    >>> product(np.ones((1, 2), np.float32)).tolist()
    [[1.0, 2.0]]
  """
  # `BCSR.fromdense` computes the same on the device, operation by operation.
  rows = kernel.T
  live = rows != 0
  indices = np.nonzero(live)[1].astype(np.int32)
  starts = np.cumsum([0, *live.sum(1)]).astype(np.int32)
  matrix = sparse.BCSR(
    jax.device_put((rows[live], indices, starts)),
    shape=rows.shape,
    indices_sorted=True,
    unique_indices=True,
  )
  return lambda x: (matrix @ x.T).T
