"""N:M kernels in compressed form: the live values and their indices in the groups."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from sparsejax.core._checks import check_integer
from sparsejax.core._tree import check_arrays

Array = jax.Array


def compress_n_m(
  kernel: Array, mask: Array, n: int, m: int, axis: int | None = None
) -> tuple[Array, Array]:
  """Compresses a kernel with N:M groups of adjacent weights to n / m of its size.

  values[g n + j] = kernel[g m + indices[g n + j]], j = 0 .. n - 1, in rising order

  Args:
    kernel: array.
    mask: bool array of the kernel's shape, with exactly n live weights in every group
      of m.
    n: number of live weights per group.
    m: number of weights per group, at most 256.
    axis: the axis along which weights are grouped. None is -2, the inputs of a kernel
      (taps, inputs, outputs). It must be given for a kernel of rank 3: 0 for
      attention's query, -2 for its output kernel and for a convolution.

  Returns:
    values, of the kernel's dtype, and indices, uint8 positions in the group (for 1:4
    and 2:4 two bits are used). Both have the kernel's shape, with n / m of its length
    along `axis`.

  Raises:
    TypeError: `n`, `m` or `axis` is not an integer, or `mask` is not bool.
    ValueError: shapes do not fit, `axis` is None for rank 3, or (if its values are
      known) the mask is not N:M.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj
    >>> kernel = jnp.array([[0.0], [5.0], [0.0], [7.0]])
    >>> values, indices = sj.compress_n_m(kernel, kernel != 0, 2, 4)
    >>> print(values[:, 0], indices[:, 0])
    [5. 7.] [1 3]
  """
  _check(n, m, axis)
  check_arrays("kernel", kernel)
  check_arrays("mask", mask)
  if mask.dtype != bool:
    raise TypeError(f"mask must be bool, got {mask.dtype}.")
  if mask.shape != kernel.shape:
    raise ValueError(
      f"mask must have the shape of kernel {kernel.shape}, got {mask.shape}."
    )
  at = _axis(axis, kernel.ndim)
  groups = _split(mask, at, m)
  if not isinstance(mask, Tracer) and not bool((groups.sum(at + 1) == n).all()):
    raise ValueError(
      f"mask must contain exactly {n} of {m} in every group of axis "
      f"{-2 if axis is None else axis}."
    )
  # A stable sort of each group puts live weights first, in increasing index order.
  order = jnp.argsort(~groups, axis=at + 1, stable=True)
  order = lax.slice_in_dim(order, 0, n, axis=at + 1)
  values = jnp.take_along_axis(_split(kernel, at, m), order, axis=at + 1)
  shape = (*kernel.shape[:at], kernel.shape[at] // m * n, *kernel.shape[at + 1 :])
  return values.reshape(shape), order.astype(jnp.uint8).reshape(shape)


def expand_n_m(
  values: Array, indices: Array, n: int, m: int, axis: int | None = None
) -> Array:
  """Restores the kernel from `compress_n_m`, with zeros at masked weights.

  Args:
    values: the values that `compress_n_m` returned.
    indices: the indices that `compress_n_m` returned.
    n: number of live weights per group.
    m: number of weights per group.
    axis: the axis along which weights are grouped; see `compress_n_m`.

  Returns:
    Array of the values' dtype, m / n times as long along `axis`.

  Raises:
    TypeError: `n`, `m` or `axis` is not an integer, or `indices` is not uint8.
    ValueError: shapes do not fit, or (if the indices are known) one is not below m.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj
    >>> values, indices = jnp.array([[5.0]]), jnp.array([[2]], jnp.uint8)
    >>> print(sj.expand_n_m(values, indices, 1, 4)[:, 0])
    [0. 0. 5. 0.]
  """
  _check(n, m, axis)
  check_arrays("values", values)
  check_arrays("indices", indices)
  if indices.dtype != jnp.uint8:
    raise TypeError(f"indices must be uint8, got {indices.dtype}.")
  if values.shape != indices.shape:
    raise ValueError(
      f"indices must have the shape of values {values.shape}, got {indices.shape}."
    )
  at = _axis(axis, values.ndim)
  if not isinstance(indices, Tracer) and not bool((indices < m).all()):
    raise ValueError(f"indices must be places in groups of {m}, got {indices.max()}.")
  # For each of the n values of a group, compares its index with all m positions, which
  # needs no scatter.
  place = _split(indices, at, n)
  packed = _split(values, at, n)
  along = tuple(m if i == at + 1 else 1 for i in range(place.ndim))
  member = lax.broadcasted_iota(jnp.uint8, along, at + 1)
  shape = tuple(m if i == at + 1 else size for i, size in enumerate(place.shape))
  kernel = jnp.zeros(shape, values.dtype)
  for j in range(n):
    here = lax.slice_in_dim(place, j, j + 1, axis=at + 1) == member
    kernel = jnp.where(here, lax.slice_in_dim(packed, j, j + 1, axis=at + 1), kernel)
  length = values.shape[at] // n * m
  return kernel.reshape((*values.shape[:at], length, *values.shape[at + 1 :]))


def _check(n: int, m: int, axis: int | None) -> None:
  check_integer("n", n, 1)
  check_integer("m", m, n)
  if axis is not None:
    check_integer("axis", axis)
  if m > 256:
    raise ValueError(f"m must be at most 256, for indices of a byte, got {m}.")


def _axis(axis: int | None, ndim: int) -> int:
  if axis is None and ndim == 3:
    raise ValueError(
      "axis must be given for a kernel of rank 3, whose inputs may be any axis: 0 for "
      "attention's query, -2 for its output kernel and for a convolution; got None."
    )
  axis = -2 if axis is None else axis
  if not -ndim <= axis < ndim:
    raise ValueError(f"axis must lie in [{-ndim}, {ndim}), got {axis}.")
  return axis % ndim


def _split(x: Array, at: int, length: int) -> Array:
  if x.shape[at] % length:
    raise ValueError(
      f"kernel must have a multiple of {length} along axis {at}, got shape {x.shape}."
    )
  return x.reshape((*x.shape[:at], x.shape[at] // length, length, *x.shape[at + 1 :]))
