"""The state at the start, and the checks that a structure fits."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sparsejax.core import (
  Distribution,
  LayerAxes,
  MaskTransform,
  PyTree,
  budget_shape,
  check_known,
  from_vector,
  layer_shapes,
  leaf_keys,
  shard_like,
  top_k_masks,
  true_like,
  uniform_like,
)
from sparsejax.core.structures import Structure, check_fits, check_fixed, check_type
from sparsejax.distributions import layer_budgets, uniform


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
  budgets = layer_budgets(distribution, shapes, density)
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


def shard_state_like_params(state: PyTree, params: PyTree) -> PyTree:
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
        return shard_like(leaf, param)
    return leaf

  return jax.tree_util.tree_map_with_path(place, state)


def check_structure(
  structure: Structure | None, density: Any, distribution: Distribution
) -> None:
  """What can be said of a structure before any layer is known.

  Args:
    structure: a structure, or None.
    density: as in `sparsify`; None starts with everything live.
    distribution: as in `sparsify`.

  Raises:
    TypeError: structure is not one.
    ValueError: it fixes the density, and density or distribution says otherwise.
  """
  if structure is None:
    return
  check_type(structure)
  if structure.density is None or density is None:
    return
  check_fixed(density, structure)
  if distribution is not uniform:
    raise ValueError(
      f"distribution must be uniform under the structure {structure.name}, which fixes "
      f"every layer's density, got {distribution!r}."
    )


def check_layers(
  structure: Structure | None, transform: MaskTransform, axes: Sequence[LayerAxes]
) -> None:
  """What can be said of a structure once the layers are known.

  Args:
    structure: a structure, or None.
    transform: the mask transform that will work under it.
    axes: what the axes of each sparsified leaf are.

  Raises:
    ValueError: a layer does not fit, or the transform does not; the structure must know
      a kernel's inputs, and nobody declared them.
  """
  if transform.check is not None:
    transform.check(axes)
  if structure is None:
    return
  check_axes(structure, axes)
  check_fits(transform, structure, layer_shapes(axes))


def check_axes(structure: Structure, axes: Sequence[LayerAxes]) -> None:
  """Raises ValueError unless a structure fits every layer.

  Args:
    structure: a structure.
    axes: what the axes of each sparsified leaf are.

  Raises:
    ValueError: a layer does not fit, or its inputs are not known.
  """
  # Of a vector the structure's own message says more.
  check_known([a for a in axes if len(a.layer) > 1], f"the structure {structure.name}")
  for a in axes:
    structure.check(a.path, a)
