"""The orthogonal matrix nearest to a given one."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

# The error is squared by each; from singular values above 0.1 these are enough.
_STEPS = 12


def nearest_orthogonal(matrix: Array) -> Array:
  """The orthogonal matrix nearest to a given one, by Newton and Schulz's iteration.

  X <- X (3 - X^T X) / 2,  from X / max(1, ||X||_1 ||X||_inf)^(1/2)

  Products of block-diagonal matrices between two permutations keep their zeros, so a
  matrix on the support of `initializers.sparse_orthogonal` is taken back to one on it.

  Args:
    matrix: (..., rows, columns), floating, of full rank; near orthogonal, or the
      iteration stops short of it.

  Returns:
    The polar factor U of X = U (X^T X)^(1/2), of the same shape: orthonormal rows where
    rows <= columns, columns otherwise.

  Raises:
    ValueError: matrix is none.

  Example:
    >>> x = nearest_orthogonal(jnp.array([[1.1, 0.0], [0.0, -0.8]]))
    >>> x.round(4)
    Array([[ 1.,  0.],
           [ 0., -1.]], dtype=float32)
  """
  x = jnp.asarray(matrix)
  if x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      "matrix must be floating, of shape (..., rows, columns), got "
      f"{x.dtype}{list(x.shape)}."
    )
  if x.shape[-2] > x.shape[-1]:
    return nearest_orthogonal(x.mT).mT
  one, inf = jnp.sum(jnp.abs(x), -2).max(-1), jnp.sum(jnp.abs(x), -1).max(-1)
  # Bounds the largest singular value by 1, where the iteration converges.
  x = x / jnp.sqrt(jnp.maximum(one * inf, 1))[..., None, None]

  def step(_, x):
    return x * np.asarray(1.5, x.dtype) - (x @ x.mT @ x) * np.asarray(0.5, x.dtype)

  return jax.lax.fori_loop(0, _STEPS, step, x)
