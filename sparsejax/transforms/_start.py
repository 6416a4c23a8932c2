"""First masks and budgets, sharding of states, and validation of structures."""

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


# One compiled program, shared by all optimizers with the same tree of kernels: run
# eagerly, every loop inside would be compiled separately.
@functools.partial(
  jax.jit,
  static_argnames=("density", "distribution", "axes", "structure"),
)
def start(kernels, seed, traced, *, density, distribution, axes, structure=None):
  """Draws the first masks and budgets: random at a density, or all live.

  Args:
    kernels: tree of the sparsified leaves.
    seed: int32 scalar.
    traced: the density, if it is a traced array; else None.
    density: the density, if it is static; else None. If `traced` is None too, all
      weights are live.
    distribution: sets the budget of each layer.
    axes: a `LayerAxes` per leaf.
    structure: a structure, or None.

  Returns:
    The masks, the budgets and the seed.
  """
  # The shapes of the layers, and of the budgets in the tree of kernels.
  treedef = jax.tree.structure(kernels)
  like = treedef.unflatten(a.budget for a in axes)
  shapes = layer_shapes(axes)
  density = density if traced is None else traced
  live = jax.tree.map(true_like, kernels)
  if density is None:
    budgets = jnp.asarray([int(np.prod(s)) for s in shapes.values()], jnp.int32)
    return live, from_vector(budgets, like), seed
  # One budget per layer, rounded to what the structure allows.
  budgets = layer_budgets(distribution, shapes, density, axes)
  if structure is not None:
    budgets = structure.fit(shapes, budgets)
  budgets = from_vector(budgets, like)
  # The largest of uniform draws are a uniform choice of weights.
  keys = leaf_keys(jax.random.key(seed), kernels)
  leaves = jax.tree.leaves(kernels)
  draws = [uniform_like(k, leaf) for k, leaf in zip(keys, leaves, strict=True)]
  draws = treedef.unflatten(draws)
  if structure is None:
    return top_k_masks(draws, budgets, live), budgets, seed
  return structure.select(draws, budgets, live, axes=axes), budgets, seed


def shard_state_like_params(state: PyTree, params: PyTree) -> PyTree:
  """Gives moments the sharding of their parameters.

  Under `jit` an optimizer's zeros depend on no data, and the compiler would replicate
  the moments of a sharded parameter on every device.

  Args:
    state: any tree; a leaf belongs to a parameter if its path ends with the
      parameter's path and the shapes are equal.
    params: the params with which the state was initialized.

  Returns:
    The same state; outside of `jit` it is returned unchanged.
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
  """Validates a structure against a density and a distribution.

  Args:
    structure: a structure, or None.
    density: as in `sparsify`; None starts with all weights live.
    distribution: as in `sparsify`.

  Raises:
    TypeError: structure is not a `Structure`.
    ValueError: the structure fixes the density, and density or distribution contradicts
      it.
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
  """Validates a structure and a mask transform against the layers.

  Args:
    structure: a structure, or None.
    transform: the mask transform that will run with it.
    axes: a `LayerAxes` per sparsified leaf.

  Raises:
    ValueError: a layer or the transform does not fit; or the structure needs the input
      axes of a kernel, which are not known.
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
    axes: a `LayerAxes` per sparsified leaf.

  Raises:
    ValueError: a layer does not fit, or its inputs are not known.
  """
  # Vectors are left to `structure.check`, whose message is more specific.
  check_known([a for a in axes if len(a.layer) > 1], f"the structure {structure.name}")
  for a in axes:
    try:
      structure.check(a.path, a)
    except ValueError as e:
      e.add_note(f"To leave {a.path!r} dense, exclude it by where=.")
      raise
