"""The orthogonal matrix nearest to a given matrix."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

# Each step squares the error; for singular values above 0.1 this number is enough.
_STEPS = 12


def nearest_orthogonal(matrix: Array) -> Array:
  """Computes the nearest orthogonal matrix by the Newton-Schulz iteration.

  X <- X (3 - X^T X) / 2,  from X / max(1, ||X||_1 ||X||_inf)^(1/2)

  The iteration keeps the zeros of a block-diagonal matrix between two permutations. So
  a matrix with the mask of `initializers.sparse_orthogonal` gives a matrix with the
  same mask.

  Args:
    matrix: (..., rows, columns), floating point and of full rank. If it is far from
      orthogonal, the fixed number of steps is not enough to converge.

  Returns:
    The polar factor U of X = U (X^T X)^(1/2), of the same shape. Its rows are
    orthonormal where rows <= columns, and its columns otherwise.

  Raises:
    ValueError: `matrix` is not floating point or has fewer than two axes.

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
  # Scales the largest singular value to at most 1, where the iteration converges.
  x = x / jnp.sqrt(jnp.maximum(one * inf, 1))[..., None, None]

  def step(_, x):
    return x * np.asarray(1.5, x.dtype) - (x @ x.mT @ x) * np.asarray(0.5, x.dtype)

  return jax.lax.fori_loop(0, _STEPS, step, x)
