"""Scaling the initial weights of a sparse network."""

import jax
import jax.numpy as jnp

from sparsejax.core._reduce import count
from sparsejax.core._tree import align, check_masks
from sparsejax.core._types import PyTree


def rescale(params: PyTree, masks: PyTree) -> PyTree:
  """Scales each sparse layer so that its outputs have the dense layer's variance.

  w_l *= sqrt(size_l / live_l)

  Initializers choose the variance of a weight from its layer's fan-in. Masks remove a
  part of the fan-in, and at densities of a few percent the outputs of several layers in
  sequence become too small to train. Call it once at the start, after `apply_masks`.

  Args:
    params: the weights, masked or not.
    masks: the masks of these params, as `sj.masks` returns them.

  Returns:
    The params, with the same structure and dtypes. Leaves without a mask are unchanged.
    A layer without a live weight is scaled as if it had one.

  Raises:
    TypeError: a mask is not bool.
    ValueError: the trees differ in structure.

  References:
    Evci et al. 2022, "Gradient flow in sparse neural networks and how lottery tickets
    win", section 3, in the mean over a layer's neurons.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj
    >>> masks = {"w": jnp.array([[True, False], [False, False]])}
    >>> sj.rescale({"w": jnp.ones((2, 2))}, masks)["w"][0, 0]
    Array(2., dtype=float32)
  """

  def scaled(p, mask):
    if mask is None:
      return p
    live = jnp.maximum(count(mask), 1).astype(jnp.float32)
    return p * jnp.sqrt(jnp.float32(mask.size) / live).astype(p.dtype)

  check_masks(masks)
  leaves, treedef = jax.tree.flatten(params)
  pairs = zip(leaves, align(params, masks), strict=True)
  return treedef.unflatten([scaled(p, m) for p, m in pairs])
