"""Diagonals of the Hessian: exact, Hutchinson's estimate, and empirical Fisher."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from sparsejax.core import widened

Params = Any
Loss = Callable[[Params], jax.Array]


def hessian_vector_product(loss: Loss, params: Params, vector: Params) -> Params:
  """Multiplies the Hessian of `loss` at `params` by a vector, without forming it.

  `H v = d/dt grad(loss)(params + t v)` at `t = 0`: forward over reverse mode.

  Args:
    loss: `params -> scalar`.
    params: pytree of float arrays.
    vector: pytree like `params`.

  Returns:
    A pytree like `params`.

  Example:
    >>> hvp = hessian_vector_product(lambda w: jnp.sum(w**3), jnp.ones(2), jnp.ones(2))
    >>> hvp.tolist()
    [6.0, 6.0]

  Reference: Pearlmutter, Fast exact multiplication by the Hessian (1994).
  """
  return jax.jvp(jax.grad(loss), (params,), (vector,))[1]


def hessian_diagonal(loss: Loss, params: Params, *, batch_size: int = 32) -> Params:
  """Computes the exact Hessian diagonal by one Hessian-vector product per weight.

  `h_k = e_k . H e_k`. For small networks: the cost is that of `n_weights` gradients.

  Args:
    loss: `params -> scalar`.
    params: pytree of float arrays, all of one dtype.
    batch_size: how many products are computed at a time. It changes the memory use, not
      the result.

  Returns:
    A pytree like `params`: `h_k`, in units of loss per squared weight.

  Raises:
    ValueError: `batch_size` is below 1.

  Example:
    >>> hessian_diagonal(lambda w: w[0] ** 2 * w[1], jnp.array([1.0, 2.0])).tolist()
    [4.0, 0.0]

  Reference: LeCun, Denker and Solla, Optimal brain damage (1990), Eq. 3.
  """
  if batch_size < 1:
    raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
  flat, unravel = ravel_pytree(params)

  def flat_loss(vector):
    return loss(unravel(vector))

  def entry(index):
    basis = jnp.zeros_like(flat).at[index].set(1)
    return hessian_vector_product(flat_loss, flat, basis)[index]

  return unravel(jax.lax.map(entry, jnp.arange(flat.size), batch_size=batch_size))


def hutchinson_diagonal(
  loss: Loss, params: Params, key: jax.Array, *, samples: int = 32
) -> Params:
  """Estimates the Hessian diagonal with Hutchinson's unbiased estimator.

  `h ~ mean_s z_s * (H z_s)` with independent random signs `z_s`. The variance of entry
  `k` is `sum_{j != k} H_kj^2 / samples`. One sample is exact where H is diagonal.

  Args:
    loss: `params -> scalar`.
    params: pytree of float arrays.
    key: a JAX random key.
    samples: how many sign vectors to average.

  Returns:
    A pytree like `params`, float32 for 16-bit params; entries may be negative.

  Raises:
    ValueError: `samples` is below 1.

  Example:
    >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([3.0, 5.0]) * w**2)
    >>> hutchinson_diagonal(loss, jnp.ones(2), jax.random.key(0), samples=1).tolist()
    [3.0, 5.0]

  Reference: Bekas, Kokiopoulou and Saad, An estimator for the diagonal of a matrix
  (2007), Eq. 2.
  """
  if samples < 1:
    raise ValueError(f"samples must be at least 1, got {samples}.")
  flat, unravel = ravel_pytree(params)

  def flat_loss(vector):
    return loss(unravel(vector))

  # The samples are added in float32 at least: a sum in bfloat16 soon stops to grow.
  zeros, unravel_wide = ravel_pytree(_wide_zeros(params))

  def add(total, sample_key):
    signs = jax.random.rademacher(sample_key, flat.shape, flat.dtype)
    new = signs * hessian_vector_product(flat_loss, flat, signs)
    return total + new.astype(total.dtype), None

  keys = jax.random.split(key, samples)
  total, _ = jax.lax.scan(add, zeros, keys)
  return unravel_wide(total / samples)


def empirical_fisher_diagonal(
  example_loss: Callable[[Params, Any], jax.Array],
  params: Params,
  examples: Any,
  *,
  batch_size: int = 32,
) -> Params:
  """Computes the diagonal of the empirical Fisher matrix, `mean_i g_i^2`.

  Args:
    example_loss: `(params, example) -> scalar`, the loss of one example.
    params: pytree of float arrays.
    examples: pytree whose leaves have the examples along axis 0.
    batch_size: how many examples' gradients are in memory at a time.

  Returns:
    A pytree like `params`, float32 for 16-bit params. It is not the diagonal of the
    Hessian: at a good fit the gradients, and with them this matrix, go to zero, but the
    Gauss-Newton matrix does not.

  Raises:
    ValueError: `batch_size` is below 1, or `examples` is empty.

  Example:
    >>> loss = lambda w, x: w * x
    >>> empirical_fisher_diagonal(loss, jnp.array(1.0), jnp.array([1.0, 3.0])).item()
    5.0

  Reference: Kunstner, Balles and Hennig, Limitations of the empirical Fisher
  approximation (2019), Eq. 3.
  """
  if batch_size < 1:
    raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
  count = jax.tree.leaves(examples)[0].shape[0]
  if count < 1:
    raise ValueError(f"examples must contain at least 1 example, got {count}.")

  def squared_gradient(example):
    grads = jax.grad(example_loss)(params, example)
    return jax.tree.map(lambda g: jnp.square(widened(g)), grads)

  squares = sum_over_examples(squared_gradient, params, examples, batch_size)
  return jax.tree.map(lambda total: total / count, squares)


def sum_over_examples(
  function: Callable[[Any], Params], like: Params, examples: Any, batch_size: int
) -> Params:
  """Sums `function(example)` over examples, `batch_size` examples at a time.

  `function` returns a pytree like `like`. The sum is in float32 at least: in bfloat16
  it would soon stop to grow, and squares of small float16 numbers are zero.

  Example:
    >>> x = jnp.arange(5.0)
    >>> sum_over_examples(lambda e: e**2, jnp.array(0.0), x, 2).item()
    30.0
  """
  count = jax.tree.leaves(examples)[0].shape[0]
  whole = count // batch_size * batch_size

  def add(total, chunk):
    values = jax.vmap(function)(chunk)
    return jax.tree.map(lambda t, v: t + jnp.sum(widened(v), 0), total, values), None

  total = _wide_zeros(like)
  if whole:
    chunks = jax.tree.map(
      lambda x: x[:whole].reshape(-1, batch_size, *x.shape[1:]), examples
    )
    total, _ = jax.lax.scan(add, total, chunks)
  if whole < count:
    total, _ = add(total, jax.tree.map(lambda x: x[whole:], examples))
  return total


def _wide_zeros(tree: Params) -> Params:
  """Returns zeros like a tree, in float32 at least."""
  return jax.tree.map(lambda x: jnp.zeros_like(widened(x)), tree)
