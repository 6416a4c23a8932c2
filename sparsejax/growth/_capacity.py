"""Copying of a grown network into a wider model, which gives it room to grow."""

from typing import Any

import jax

from sparsejax.core import path_string
from sparsejax.growth._chain import Layer, by_channel

Array = jax.Array
PyTree = Any


def carry_over(
  tree: PyTree,
  wider: PyTree,
  chain: tuple[Layer, ...],
  wider_chain: tuple[Layer, ...],
) -> PyTree:
  """Copies a network's arrays into the corresponding units of a wider network.

  wider[..., :inputs, :features] = tree, by channels where a dense layer follows a
  convolution; what is new stays as it is in `wider`

  A network grows by masks inside arrays of fixed shapes, its capacity, so that programs
  compile once. When no unused unit is left, create the model with twice the widths and
  a fresh state with all masks False, and copy everything into it. The network computes
  the same function, and training continues as before, because moments, ages and counts
  of the optimizer are copied too.

  Args:
    tree: params, masks, a model's state, an optimizer's state, or any tree of these.
    wider: the same tree of the wider model. New masks must be False, and new weights
      zero or masked.
    chain: the layers of the narrower model, from `growth.layers`.
    wider_chain: the layers of the wider model, the same layers in the same order.

  Returns:
    A tree with the shapes of `wider`.

  Raises:
    ValueError: the structures differ, a layer of `wider_chain` is narrower, or an array
      whose shape differs belongs to no layer.

  Example:
    >>> import jax.numpy as jnp
    >>> chain = (Layer(("a",), (2, 1), 2, 1), Layer(("b",), (1, 1), 1, 1))
    >>> wide = (Layer(("a",), (2, 2), 2, 1), Layer(("b",), (2, 1), 2, 1))
    >>> params = {"a": {"kernel": jnp.ones((2, 1))}, "b": {"kernel": jnp.ones((1, 1))}}
    >>> zeros = {"a": {"kernel": jnp.zeros((2, 2))}, "b": {"kernel": jnp.zeros((2, 1))}}
    >>> carry_over(params, zeros, chain, wide)["a"]["kernel"]
    Array([[1., 0.],
           [1., 0.]], dtype=float32)
  """
  _check(chain, wider_chain)
  flat, treedef = jax.tree_util.tree_flatten_with_path(tree)
  targets, wider_treedef = jax.tree.flatten(wider)
  if treedef != wider_treedef:
    raise ValueError(
      "wider must have the structure of tree; got other containers or leaves: "
      f"{wider_treedef} for {treedef}."
    )
  # Copy leaves of equal shape whole, the others into the first units of their layer.
  carried = []
  for (path, old), new in zip(flat, targets, strict=True):
    if old.shape == new.shape:
      carried.append(old)
      continue
    carried.append(_embed(path_string(path), old, new, chain, wider_chain))
  return treedef.unflatten(carried)


def _embed(name, old, new, chain, wider_chain):
  for layer, wide in zip(chain, wider_chain, strict=True):
    # A leaf belongs to the layer if its path ends with that of the layer or its norm.
    owners = ["/".join(layer.path)]
    owners += ["/".join(layer.norm)] if layer.norm else []
    if not any(f"/{name}".rpartition("/")[0].endswith(f"/{o}") for o in owners):
      continue
    if old.shape == (layer.features,) and new.shape == (wide.features,):
      return new.at[: layer.features].set(old.astype(new.dtype))
    if old.shape == layer.shape and new.shape == wide.shape:
      target = by_channel(new, wide.inputs)
      place = (slice(None), slice(layer.inputs), slice(layer.features))
      filled = target.at[place].set(by_channel(old, layer.inputs).astype(new.dtype))
      return filled.reshape(new.shape)
  raise ValueError(
    f"wider must differ from tree in the layers' widths only, got {new.shape} for "
    f"{old.shape} at {name!r}."
  )


def _check(chain, wider_chain):
  if [layer.path for layer in chain] != [layer.path for layer in wider_chain]:
    raise ValueError(
      f"wider_chain must contain the layers {[layer.name for layer in chain]}, got "
      f"{[layer.name for layer in wider_chain]}."
    )
  for layer, wide in zip(chain, wider_chain, strict=True):
    if any(a > b for a, b in zip(layer.shape, wide.shape, strict=True)):
      raise ValueError(
        f"wider_chain must be at least as wide, got {wide.shape} for {layer.shape} at "
        f"{layer.name!r}."
      )
