"""Matrix products with block-sparse kernels; the cost is that of the live blocks."""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.ops import _record
from sparsejax.ops._blocks import check_block, check_kernel
from sparsejax.ops._share import live_share
from sparsejax.ops._visit import Static, product, sharded

Array = jax.Array
Implementation = Literal["xla", "pallas"] | None

# The share of live blocks up to which the Pallas kernels are used. It has not been
# measured: a block costs more in them than in a dense product, which is at most twice.
_PALLAS_SHARE = 0.5


def block_dot(
  x: Array,
  kernel: Array,
  block: tuple[int, int],
  *,
  live: Array | None = None,
  precision: Any = None,
  preferred_element_type: Any = None,
  implementation: Implementation = None,
) -> Array:
  """Multiplies by a block-sparse kernel and skips its dead blocks.

  y[..., o] = sum over live (i, o) of x[..., i] @ kernel[i, o]

  with i and o blocks of inputs and outputs. The result equals `x @ kernel` up to the
  order of the sums. The forward pass and the gradient of x skip blocks of zeros. The
  gradient of the kernel skips blocks of -0.0 (see `sparsejax.mark_dead`), whose
  gradient is then zero. The values of the kernel alone say which blocks are dead, so
  any method, optimizer and checkpoint can be used.

  The product is dense where skipping blocks is not faster: above a measured share of
  live blocks; for blocks with fewer than 32 inputs or outputs; unless `live` is given,
  for products with fewer than 2^25 multiply-adds or fewer than 16 rows; and on
  platforms that were not measured, which are all but the CPU, unless `implementation`
  asks for the Pallas kernels. NaN or infinity in x
  times a skipped block gives 0 here, and NaN in a dense product. Under `vmap` over the
  kernel both the loop and the dense product are computed; use `lax.scan` for stacked
  layers. Reverse-mode derivatives of any order are supported; the second ones use dense
  products. JAX does not support forward mode (`jax.jvp`) for any `custom_vjp`.

  x may be sharded over its leading axes; then only the gradients of live blocks are
  summed over the devices. A kernel that is sharded over automatic mesh axes is gathered
  first, once if the mesh is set by `jax.set_mesh`. To multiply by the shards of a
  kernel use `jax.shard_map`. With operands sharded over explicit mesh axes the product
  is dense.

  Args:
    x: floats (..., inputs).
    kernel: floats (inputs, outputs), of the dtype of x.
    block: (bi, bo), inputs and outputs of one block; they divide the kernel's axes.
    live: bool (inputs / bi, outputs / bo), the result of `live_blocks(kernel, block)`,
      for kernels that are used in many products. Blocks where it is False must be zero.
    precision: as in `jax.lax.dot_general`.
    preferred_element_type: the floating-point dtype of y; None for that of x. Sums are
      computed in float32 or wider in any case.
    implementation: how the live blocks are multiplied. None is the fastest one that was
      measured for the platform. "xla" is a loop over blocks on CPUs and the dense
      product elsewhere, today the same as None. "pallas" is a kernel for GPUs (through
      Triton) and TPUs, for blocks with sides of 16, 32, 64, ...; on a CPU it runs in
      interpret mode, for tests.

  Returns:
    Array (..., outputs).

  Raises:
    TypeError: `block` is not a pair of integers; `kernel` is not floating point; the
      dtypes of x and kernel differ; or `preferred_element_type` is not floating point.
    ValueError: the shapes do not fit, the block does not divide the kernel, or
      `implementation` is unknown.

  Example:
    >>> import jax.numpy as jnp
    >>> kernel = jnp.array([[1.0, 2.0, -0.0, -0.0], [3.0, 5.0, -0.0, -0.0]])
    >>> block_dot(jnp.array([[1.0, -1.0]]), kernel, (2, 2))
    Array([[-2., -3.,  0.,  0.]], dtype=float32)
  """
  block = check_block(block)
  _check_implementation(implementation)
  check_kernel(kernel, block)
  if kernel.ndim != 2 or x.ndim < 1 or x.shape[-1] != kernel.shape[0]:
    raise ValueError(
      "kernel must be (inputs, outputs) for x (..., inputs), got shapes "
      f"{kernel.shape} and {x.shape}."
    )
  if x.dtype != kernel.dtype:
    raise TypeError(
      f"x must have the kernel's dtype, {kernel.dtype.name}, got {x.dtype.name}."
    )
  wanted = (kernel.shape[0] // block[0], kernel.shape[1] // block[1])
  if live is not None and (live.shape != wanted or live.dtype != bool):
    raise ValueError(
      f"live must be bool of shape {wanted}, got {live.dtype.name} of shape "
      f"{live.shape}."
    )
  out = jnp.dtype(x.dtype if preferred_element_type is None else preferred_element_type)
  if not jnp.issubdtype(out, jnp.floating):
    raise TypeError(
      f"preferred_element_type must be floating point for block_dot, got {out.name}."
    )
  # Takes the dense product if blocks cannot be faster or are not supported, and records
  # the reason for `explain`.
  rows = math.prod(x.shape[:-1])
  reason = "" if rows else "x is empty"
  pallas = implementation == "pallas"
  if pallas:
    from sparsejax.ops import _pallas  # Pallas takes long to import

    share = _PALLAS_SHARE
    reason = reason or _pallas.unsupported(block, kernel.dtype, out)
  else:
    share = live_share(
      rows, kernel.shape, block, kernel.dtype.itemsize, live is not None
    )
  if not share:
    reason = reason or "the block or the batch is too small to gain"
  if reason := reason or sharded(x, kernel):
    _record.dense(kernel.shape, block, reason)
    dims = (((x.ndim - 1,), (0,)), ((), ()))
    return lax.dot_general(
      x, kernel, dims, precision=precision, preferred_element_type=out
    )
  # Otherwise `product` chooses at run time: the loop over blocks up to `limit` live
  # blocks, and the dense product above.
  static = Static(
    block=block,
    limit=int(share * math.prod(wanted)),
    x_shape=(rows, x.shape[-1]),
    precision=precision,
    out_dtype=out,
    sum_dtype=jnp.dtype("float64" if jnp.float64 in (x.dtype, out) else "float32"),
    pallas=pallas,
  )
  y = product(static, x.reshape(static.x_shape), kernel, live)
  return y.reshape(*x.shape[:-1], kernel.shape[1])


def _check_implementation(implementation: Any) -> None:
  if implementation not in (None, "xla", "pallas"):
    raise ValueError(
      f"implementation must be None, 'xla' or 'pallas', got {implementation!r}."
    )


def block_dot_general(
  block: tuple[int, int], implementation: Implementation = None
) -> Callable[..., Array]:
  """Returns a `jax.lax.dot_general` for flax layers that skips a kernel's dead blocks.

  y = block_dot(x, kernel, block), the contracted axes as inputs, the others as outputs

  Use it for the argument `dot_general=` of `flax.linen.Dense` and `DenseGeneral`, of
  `flax.nnx.Linear` and `LinearGeneral`, and for `qkv_dot_general=` and
  `out_dot_general=` of their attention layers. The second operand is the kernel.
  Kernels with more than two axes are reshaped to matrices (contracted, others), so the
  blocks of a kernel (inputs, heads, features) are over heads and features together. The
  product is dense where `block_dot` does not apply: for kernels that the block does not
  divide, other axes, batch axes, and other dtypes.

  Args:
    block: (bi, bo), inputs and outputs of one block, as in `sparsejax.block`.
    implementation: as in `block_dot`.

  Returns:
    A function with the arguments of `jax.lax.dot_general`.

  Raises:
    TypeError: block is not a pair of integers.
    ValueError: a side of the block is below 1, or `implementation` is unknown.

  Example:
    >>> import flax.linen as nn, jax, jax.numpy as jnp, sparsejax as sj
    >>> layer = nn.Dense(256, dot_general=sj.ops.block_dot_general((128, 128)))
    >>> params = layer.init(jax.random.key(0), jnp.ones((32, 128)))
    >>> layer.apply(params, jnp.ones((32, 128))).shape
    (32, 256)
  """
  block = check_block(block)
  _check_implementation(implementation)

  def dot_general(
    lhs,
    rhs,
    dimension_numbers,
    precision=None,
    preferred_element_type=None,
    *,
    out_sharding=None,
  ):
    # The reason why `block_dot` does not apply, if there is one.
    (over_x, over_kernel), batch = dimension_numbers
    n = len(over_kernel)
    reason = ""
    if batch != ((), ()) and (tuple(batch[0]) or tuple(batch[1])):
      reason = "it has batch axes"
    elif tuple(over_kernel) != tuple(range(n)) or not 0 < n < rhs.ndim:
      reason = "it does not contract the kernel's first axes"
    elif tuple(axis % lhs.ndim for axis in over_x) != tuple(
      range(lhs.ndim - n, lhs.ndim)
    ):
      reason = "it does not contract the last axes of x"
    elif out_sharding is not None:
      reason = "out_sharding is given"
    elif not (jnp.issubdtype(rhs.dtype, jnp.floating) and rhs.dtype.itemsize > 1):
      reason = f"the kernel is {rhs.dtype.name}"
    elif lhs.dtype != rhs.dtype:
      reason = f"x is {lhs.dtype.name}, the kernel {rhs.dtype.name}"
    elif preferred_element_type is not None and not jnp.issubdtype(
      preferred_element_type, jnp.floating
    ):
      reason = "the product is asked for in integers"
    else:
      inputs, outputs = math.prod(rhs.shape[:n]), math.prod(rhs.shape[n:])
      if inputs % block[0] or outputs % block[1] or not inputs * outputs:
        reason = "the block does not divide the kernel"
      elif reason_ := sharded(lhs, rhs):
        reason = reason_
    if reason:
      _record.dense(rhs.shape, block, reason)
      keywords = {} if out_sharding is None else {"out_sharding": out_sharding}
      return lax.dot_general(
        lhs,
        rhs,
        dimension_numbers,
        precision=precision,
        preferred_element_type=preferred_element_type,
        **keywords,
      )
    # Multiplies as matrices and restores the axes of both operands.
    y = block_dot(
      lhs.reshape(*lhs.shape[: lhs.ndim - n], inputs),
      rhs.reshape(inputs, outputs),
      block,
      precision=precision,
      preferred_element_type=preferred_element_type,
      implementation=implementation,
    )
    return y.reshape(*lhs.shape[: lhs.ndim - n], *rhs.shape[n:])

  return dot_general
