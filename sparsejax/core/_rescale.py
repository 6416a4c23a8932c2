"""The scale of weights at the start of a sparse network."""

import jax
import jax.numpy as jnp

from sparsejax.core._reduce import count
from sparsejax.core._tree import align, check_masks
from sparsejax.core._types import PyTree


def rescale(params: PyTree, masks: PyTree) -> PyTree:
  """Scales each sparse layer so that its outputs vary as those of the dense one.

  w_l *= sqrt(size_l / live_l)

  Initializers choose the variance of a weight by its layer's fan-in; with masks only
  a part of it is there, and at densities of a few percent what comes out of several
  layers is too small to learn from. Once, at the start, after `apply_masks`.

  Args:
    params: the weights, masked or not.
    masks: of `sj.masks`.

  Returns:
    The params, with the same structure and dtypes; layers without a live weight and
    leaves without a mask are as they were.

  Raises:
    ValueError: the trees do not have one structure.

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
