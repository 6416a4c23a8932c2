"""Keeps a support live, whatever other mask transforms did."""

import jax
import jax.numpy as jnp

from sparsejax.core import MaskTransform, PyTree, ScoreInputs, Topology, top_k_masks


def keep(transform: MaskTransform) -> MaskTransform:
  """Repairs the masks of another transform so that they hold a fixed support.

  masks_l = support_l, and of the other weights that the transform left live as many of
  the largest as budget_l still allows;  support = (w != 0) at init

  Kernels of `initializers.delta_orthogonal` and `sparse_orthogonal` are zero but for an
  orthogonal matrix at the center: with it live, each layer can stay an isometry.

  Args:
    transform: any mask transform, or a chain.

  Returns:
    A mask transform whose state holds the support, one byte a weight. Where a support
    is larger than a layer's budget, its largest weights are kept.

  Raises:
    TypeError: `transform` is not a mask transform.

  Example:
    >>> import sparsejax as sj
    >>> rigl = sj.chain(sj.drop(sj.magnitude, 0.3), sj.grow(sj.gradient))
    >>> repaired = keep(rigl)
  """
  if not isinstance(transform, MaskTransform):
    raise TypeError(f"transform must be a MaskTransform, got {transform!r}.")

  def init(params: PyTree):
    return jax.tree.map(lambda p: p != 0, params), transform.init(params)

  def update(inputs: ScoreInputs, topology: Topology, state: PyTree):
    support, inner = state
    topology, inner = transform.update(inputs, topology, inner)
    masks = masks_containing_support(support, inputs.params, topology)
    return topology._replace(masks=masks), (support, inner)

  return MaskTransform(init, update, check=transform.check)


def masks_containing_support(
  support: PyTree, scores: PyTree, topology: Topology
) -> PyTree:
  """The masks that hold a support first, then the best of what is live.

  Args:
    support: tree of bool arrays.
    scores: tree of floats, ranked by magnitude within and outside of the support.
    topology: masks to be repaired, and their budgets.

  Returns:
    tree of bool arrays with as many live as the budgets say.
  """

  def rank(s, m):
    # Squeezed into [0, 1], and the support lifted above all others.
    size = jnp.abs(s.astype(jnp.float32))
    size = size / (1 + size)
    return jnp.where(m, size + 1, size)

  ranks = jax.tree.map(rank, scores, support)
  either = jax.tree.map(jnp.logical_or, topology.masks, support)
  return top_k_masks(ranks, topology.budgets, either)
