"""The moments of any optax optimizer, found by structure."""

import jax
import jax.numpy as jnp

from sparsejax.core.leaves import choose
from sparsejax.core.types import Moments, PyTree

# The fields under which optax's optimizers keep a running average of the gradient.
# `nu` and `acc_grads` have the params' shapes too, and are not one.
_FIRST = ("trace", "mu", "momentum", "m", "ema")
_SECOND = ("nu", "v")


def find_moments(inner_state: PyTree, params: PyTree, chosen: list[bool]) -> Moments:
  """Finds the inner optimizer's moments of the chosen leaves.

  A moment is a leaf of the state whose path ends with the parameter's path, whose
  shape is the parameter's, and which stands in a field with a moment's name. The
  second moment must stand beside the first, in the same state: RMSProp with
  momentum divides before it averages, so its `nu` is none.

  Args:
    inner_state: the state of any optax optimizer.
    params: the params it was made for.
    chosen: one bool a leaf of `params`.

  Returns:
    `Moments` with None at leaves that are not chosen, and where there is none.
  """
  held: dict[tuple, dict[str, dict[tuple, jax.Array]]] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(inner_state):
    for i, key in enumerate(path):
      name = getattr(key, "name", None)
      if name in _FIRST or name in _SECOND:
        held.setdefault(path[:i], {}).setdefault(name, {})[path[i + 1 :]] = leaf
  firsts, seconds = [], []
  leaves = jax.tree_util.tree_leaves_with_path(params)
  for (path, param), flag in zip(leaves, chosen, strict=True):
    if flag:
      first, second = _moments_of(held, path, param)
      firsts.append(first)
      seconds.append(second)
  treedef = jax.tree.structure(choose(params, chosen))
  return Moments(treedef.unflatten(firsts), treedef.unflatten(seconds))


def _moments_of(held, path, param):
  for fields in held.values():
    for name in _FIRST:
      first = fields.get(name, {}).get(path)
      if first is None or getattr(first, "shape", None) != param.shape:
        continue
      second = next((fields[n].get(path) for n in _SECOND if n in fields), None)
      if second is not None and second.shape != param.shape:
        second = None
      return first, second
  return None, None


def wide_zeros(weights: jax.Array) -> jax.Array:
  """Returns zeros for a running sum: of the weights' shape, float32 at least.

  In bfloat16 a decay of 0.999 is 1, and in float16 a sum of gradients overflows.
  """
  wide = jnp.finfo(weights.dtype).bits > 32
  return jnp.zeros_like(weights, dtype=weights.dtype if wide else jnp.float32)


def complete(moments: Moments, params: PyTree, chosen: list[bool]) -> bool:
  """Whether every chosen leaf has a first moment."""
  wanted = jax.tree.leaves(choose(params, chosen))
  return len(jax.tree.leaves(moments.first)) == len(wanted)


def holds_momentum(inner_state: PyTree, placeholder: PyTree) -> bool:
  """`complete`, of a state that was made for optax's placeholder.

  Args:
    inner_state: what an optimizer's `init` gave for the placeholder.
    placeholder: see `is_placeholder`.

  Returns:
    Whether the placeholder stands in a field with a first moment's name.
  """
  kind, array = type(placeholder), jax.ShapeDtypeStruct((1,), "float32")
  state = jax.tree.map(
    lambda node: array if isinstance(node, kind) else node,
    inner_state,
    is_leaf=lambda node: isinstance(node, kind),
  )
  return complete(find_moments(state, array, [True]), array, [True])
