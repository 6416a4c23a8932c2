"""Delta-orthogonal kernels (Xiao et al. 2018, algorithm 2)."""

import jax.numpy as jnp
import numpy as np

from sparsejax.core import check_key, check_number
from sparsejax.initializers._orthogonal import (
  center,
  check_channels,
  check_stacked,
  haar,
  split_shape,
)


def delta_orthogonal(gain: float = 1.0, *, stacked: bool | None = None):
  """Returns an initializer that is an orthogonal matrix at the center tap, else zero.

  W[center] = gain Q[:c_in],  Q ~ Haar(c_out);  W = 0 at all other taps

  All spatial frequencies pass equally (`mean_field.fourier_rates` are all 1), which
  holds for no kernel with weight on more taps.

  Args:
    gain: the kernel's singular values; sigma_w of the theory.
    stacked: whether shapes have a leading axis of layers, each with its own matrix.
      Must be given for rank 5; see `split_shape`.
      `jax.nn.initializers.delta_orthogonal` reads such a shape as one 3-D kernel and
      fills only the middle layer.

  Returns:
    An initializer `(key, shape, dtype=float32) -> array`, for shapes (*taps, c_in,
    c_out) or (L, *taps, c_in, c_out). All layers use one batched QR.

  Raises:
    ValueError: (the initializer) c_in > c_out, or the shape is ambiguous.

  References:
    Xiao et al. 2018, "Dynamical isometry and a mean field theory of CNNs", algorithm 2.

  Example:
    >>> import jax
    >>> init = delta_orthogonal(stacked=True)
    >>> kernel = init(jax.random.key(0), (10, 3, 3, 4, 8))
    >>> w = kernel[:, 1, 1]
    >>> bool(jnp.abs(w @ w.mT - jnp.eye(4)[None]).max() < 1e-5)
    True
  """
  check_number("gain", gain, "be above 0", lambda v: 0 < v < np.inf)
  check_stacked(stacked)

  def init(key, shape, dtype=jnp.float32, out_sharding=None):
    del out_sharding
    check_key("key", key)
    layers, taps, c_in, c_out = split_shape(shape, stacked)
    check_channels(c_in, c_out)
    q = haar(key, layers, c_out, dtype)[..., :c_in, :] * np.asarray(gain, dtype)
    kernel = jnp.zeros((*layers, *taps, c_in, c_out), dtype)
    return kernel.at[(*(slice(None),) * len(layers), *center(taps))].set(q)

  return init
