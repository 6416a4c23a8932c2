"""The state at the start: first masks, first budgets, and where moments lie."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sparsejax.core import (
  PyTree,
  budget_shape,
  from_vector,
  laid_like,
  layer_shapes,
  leaf_keys,
  top_k_masks,
  true_like,
  uniform_like,
)
from sparsejax.distributions import laid_out


# One compiled program, for all optimizers of the same tree: run eagerly, every loop in
# it would compile by itself.
@functools.partial(
  jax.jit,
  static_argnames=("density", "distribution", "axes", "structure"),
)
def start(kernels, seed, traced, *, density, distribution, axes, structure=None):
  """The first masks and budgets, random at the distribution's budgets or all live."""
  treedef = jax.tree.structure(kernels)
  like = treedef.unflatten(
    jax.ShapeDtypeStruct(budget_shape(a.shape, a.stacked), jnp.int32) for a in axes
  )
  shapes = layer_shapes(axes)
  density = density if traced is None else traced
  live = jax.tree.map(true_like, kernels)
  if density is None:
    budgets = jnp.asarray([int(np.prod(s)) for s in shapes.values()], jnp.int32)
    return live, from_vector(budgets, like), seed
  budgets = laid_out(distribution, shapes, density)
  if structure is not None:
    budgets = structure.fit(shapes, budgets)
  budgets = from_vector(budgets, like)
  keys = leaf_keys(jax.random.key(seed), kernels)
  leaves = jax.tree.leaves(kernels)
  draws = [uniform_like(k, leaf) for k, leaf in zip(keys, leaves, strict=True)]
  draws = treedef.unflatten(draws)
  if structure is None:
    return top_k_masks(draws, budgets, live), budgets, seed
  return structure.select(draws, budgets, live, axes=axes), budgets, seed


def placed_like(state: PyTree, params: PyTree) -> PyTree:
  """Lays moments out like their parameters.

  Under `jit` an optimizer's zeros depend on no data, and the compiler would put the
  moments of a sharded parameter whole on every device.

  Args:
    state: any tree; a leaf belongs to a parameter if its path ends with the
      parameter's and the shapes are equal.
    params: the params it was made for.

  Returns:
    The same state; outside of `jit` untouched.
  """
  places = dict(jax.tree_util.tree_leaves_with_path(params))

  def place(path, leaf):
    if not isinstance(leaf, Tracer):
      return leaf
    for i in range(len(path) + 1):
      param = places.get(path[i:])
      if param is not None and param.shape == leaf.shape:
        return laid_like(leaf, param)
    return leaf

  return jax.tree_util.tree_map_with_path(place, state)
