"""A mask transform that keeps a fixed support live."""

import jax
import jax.numpy as jnp

from sparsejax.core import (
  MaskTransform,
  PyTree,
  ScoreInputs,
  Topology,
  put_first,
  top_k_masks,
)


def keep(transform: MaskTransform) -> MaskTransform:
  """Changes the masks of another transform so that a fixed support stays live.

  masks_l = support_l, and of the other weights that the transform left live as many of
  the largest as budget_l still allows;  support = (w != 0) at init

  Kernels from `initializers.delta_orthogonal` and `sparse_orthogonal` are zero except
  for an orthogonal matrix at the center. While this matrix is live, each layer can stay
  an isometry.

  Args:
    transform: any mask transform, or a chain.

  Returns:
    A mask transform whose state contains the support, one byte per weight. Where a
    support is larger than a layer's budget, its largest weights are kept.

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

  observe = None
  if (watch := transform.observe) is not None:
    observe = lambda inputs, state: (state[0], watch(inputs, state[1]))
  return MaskTransform(
    init,
    update,
    observe=observe,
    check=transform.check,
    keeps_budgets=transform.keeps_budgets,
  )


def masks_containing_support(
  support: PyTree, scores: PyTree, topology: Topology
) -> PyTree:
  """Returns masks of a support first, then of the best other live weights.

  Args:
    support: tree of bool arrays.
    scores: tree of floats, ranked by magnitude within and outside of the support.
    topology: the masks to change, and their budgets.

  Returns:
    A tree of bool arrays with as many live weights as the budgets. There are fewer only
    where support and masks together have fewer.
  """
  ranks = jax.tree.map(lambda s, m: put_first(jnp.abs(s), m), scores, support)
  either = jax.tree.map(jnp.logical_or, topology.masks, support)
  return top_k_masks(ranks, topology.budgets, either)
