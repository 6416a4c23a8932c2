"""Products with kernels in compressed sparse rows.

This is the only module that uses `jax.experimental.sparse`, whose CSR product is a
compiled function of jaxlib on CPUs.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
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
    >>> product(jnp.ones((1, 2))).tolist()
    [[1.0, 2.0]]
  """
  matrix = sparse.BCSR.fromdense(jnp.asarray(kernel.T), index_dtype=jnp.int32)
  return lambda x: (matrix @ x.T).T
