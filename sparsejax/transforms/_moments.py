"""The moments of any optax optimizer: which fields hold them, and what they are.

A running average is known by its field's name in the optimizer's state. Names alone
mislead, so what is known of optax's optimizers stands in a table:

| optimizer | state | first | second |
|---|---|---|---|
| sgd, lars, signum, muon, lion, ... | any | `trace`, `mu`, `momentum`, `m`, `ema` | - |
| adam, adamw, nadam, radam, yogi, lamb, amsgrad | any | `mu` | `nu` |
| adabelief, acprop, centered rmsprop | any | `mu` | `nu` |
| adamax, adamaxw | Adam's | `mu` | `nu`², for `nu` is a maximum of magnitudes |
| adopt | Adam's | `mu`, divided already | - |
| novograd, rmsprop and adafactor with momentum | their own | divided already | - |
| adan | its own | `m` | `n`, for `v` averages differences of gradients |
| ademamix; simplified_ademamix | their own | `m1`; `m` | `nu`; `n` |
| sophia | its own | `mu` | -, for `nu` estimates a Hessian, of either sign |
| sm3 | its own | `nu`, divided already | - |
| galore | its own | -, for its base optimizer sees projected gradients | - |
| mechanize | its own | -, for its `m` and `v` are learning rates' | - |
| all others | | - | - |

Where there is no first moment, `sparsify` keeps an average of its own. States of other
authors are read by the names in the first three rows; scores check by value that a
second moment is never negative (`scores.momentum`).
"""

import functools
import inspect
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.core import Moments, PyTree, align, choose

# The fields under which optimizers keep a running average of the gradient. `nu` and
# `acc_grads` have the params' shapes too, and are not one.
_FIRST = ("trace", "mu", "momentum", "m", "ema")
_SECOND = ("nu", "v")
# Where names mislead: the fields of the first and the second moment, by the state.
_FIELDS: dict[str, tuple[str | None, str | None]] = {
  "ScaleByAdanState": ("m", "n"),
  "ScaleByAdemamixState": ("m1", "nu"),
  "ScaleBySimplifiedAdEMAMixState": ("m", "n"),
  "ScaleByNovogradState": ("mu", None),
  "SophiaState": ("mu", None),
  "ScaleBySM3State": ("nu", None),
  "MechanicState": (None, None),
}
# States whose optimizer inside sees other gradients than the params'.
_OPAQUE = ("GaLoreState",)


def find_moments(
  inner_state: PyTree,
  params: PyTree,
  chosen: list[bool],
  factories: frozenset[str] = frozenset(),
) -> Moments:
  """Finds the inner optimizer's moments of the chosen leaves.

  A moment stands in a field of the state that holds moments, at the parameter's path,
  and has the parameter's shape. The second moment must stand beside the first, in the
  same state: RMSProp with momentum divides before it averages, so its `nu` is none.

  Args:
    inner_state: the state of any optax optimizer.
    params: the params it was made for.
    chosen: one bool per leaf of `params`.
    factories: what `factories_of` gives for the optimizer, which tells apart those that
      share a type of state. Where one is built of both (`optax.partition` of adam and
      adopt), adopt's reading, which divides by nothing, is that of all leaves.

  Returns:
    `Moments` with None at leaves that are not chosen, and where there is none.
  """
  divided = not factories.isdisjoint(("scale_by_adopt", "adopt"))
  maximum = not factories.isdisjoint(("scale_by_adamax", "adamax", "adamaxw"))
  pairs = list(_pairs(inner_state))
  firsts, seconds = [], []
  leaves = jax.tree_util.tree_leaves_with_path(params)
  for (path, param), flag in zip(leaves, chosen, strict=True):
    if not flag:
      continue
    first, second = _moments_of(pairs, path, param)
    if second is not None and maximum:
      second = jnp.square(second)
    firsts.append(first)
    seconds.append(None if divided else second)
  treedef = jax.tree.structure(choose(params, chosen))
  return Moments(treedef.unflatten(firsts), treedef.unflatten(seconds))


def _pairs(node: PyTree) -> Iterator[tuple[dict, dict]]:
  """First and second moments by path, of every state inside a state."""
  name = type(node).__name__
  if name in _OPAQUE:
    return
  children = jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda x: x is not node)
  fields: dict[Any, PyTree] = {}
  for path, child in children:
    if not path:  # a leaf
      return
    fields[getattr(path[0], "name", None)] = child
    if len(path) > 1:  # several levels at once: no container of its own
      return
  if name in _FIELDS:
    first, second = _FIELDS[name]
    firsts = (first,) if first else ()
    seconds = (second,) if second else ()
  else:
    firsts, seconds = _FIRST, _SECOND
  by_path = lambda tree: dict(jax.tree_util.tree_leaves_with_path(tree))
  second = next((by_path(fields[n]) for n in seconds if n in fields), {})
  for n in firsts:
    if n in fields:
      yield by_path(fields[n]), second
  for _, child in children:
    yield from _pairs(child)


def _moments_of(pairs, path, param):
  for firsts, seconds in pairs:
    first = firsts.get(path)
    if first is None or getattr(first, "shape", None) != param.shape:
      continue
    second = seconds.get(path)
    if second is not None and second.shape != param.shape:
      second = None
    return first, second
  return None, None


def factories_of(optimizer: Any) -> frozenset[str]:
  """Returns the names of the functions that an optimizer is made by.

  Several optimizers share a type of state, `optax.contrib.adopt` that of Adam and
  `optax.contrib.acprop` that of AdaBelief. What tells them apart is the function that
  made their `update`, found in the closures of `optax.chain` and its kin, or the
  function that will, named in what `optax.inject_hyperparams` was given.

  Args:
    optimizer: any optax transformation.

  Returns:
    Names such as "scale_by_adam", among others.

  Example:
    >>> import optax
    >>> "scale_by_adam" in factories_of(optax.chain(optax.clip(1.0), optax.adam(0.1)))
    True
    >>> "adopt" in factories_of(optax.inject_hyperparams(optax.contrib.adopt)(0.1))
    True
  """
  names, seen = set(), set()
  stack = [optimizer]
  while stack:
    node = stack.pop()
    if id(node) in seen:
      continue
    seen.add(id(node))
    if isinstance(node, dict):
      stack += node.values()
    elif isinstance(node, (tuple, list)):
      stack += node
    elif isinstance(node, functools.partial):
      stack += (node.func, node.args, node.keywords)
    elif isinstance(node, optax.MultiSteps):
      stack.append(vars(node))
    elif hasattr(node, "__qualname__") and not inspect.isclass(node):
      names.add(node.__qualname__.split(".<locals>")[0])
      names.update(getattr(getattr(node, "__code__", None), "co_names", ()))
      stack += _reached_from(node)
  return frozenset(names)


def _reached_from(function: Any) -> list:
  """What a function holds: its closure, the method's object, what it wraps."""
  held = []
  for cell in getattr(function, "__closure__", None) or ():
    try:
      held.append(cell.cell_contents)
    except ValueError:  # not filled yet
      continue
  held += [getattr(function, name, None) for name in ("__self__", "__wrapped__")]
  return held


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


# What `eps_root` = 1e-16 leaves of the second moment where gradients were always zero
# is at most 1e-16 / (1 - b2).
_EMPTY = 1e-12
# How much more the first gradient must bring than stood there.
_GROWTH = 1000.0


def bounded_first_steps(
  updates: PyTree, before: Moments, after: Moments, first: jax.Array
) -> PyTree:
  """Divides by the second moment after the step where the one before it held nothing.

  u' = u sqrt(v_before / v_after) where v_before < 1e-12 and v_after > 1000 v_before,
  else u

  `optax.contrib.acprop` divides by the previous second moment. Under methods that mask
  gradients that of a grown weight is about 1e-16, and the weight would step by some
  thousands of times the learning rate. Divided by the one after the step it takes the
  step that AdaBelief takes: (1 - b1) / sqrt(1 - b2) = 3.2 times the learning rate.

  Args:
    updates: the inner optimizer's.
    before: its moments before the step.
    after: its moments after the step.
    first: bool scalar, whether this is the first step, in which ACProp divides by 1.

  Returns:
    The updates, of the same structure and dtypes.

  References:
    Zhuang et al. 2021, "Momentum centering and asynchronous update for adaptive
    gradient methods", algorithm 3.
  """
  leaves, treedef = jax.tree.flatten(updates)
  out = []
  for u, old, new in zip(
    leaves, align(updates, before.second), align(updates, after.second), strict=True
  ):
    if old is None or new is None:
      out.append(u)
      continue
    empty = old < jnp.asarray(_EMPTY, old.dtype)
    young = empty & (new > jnp.asarray(_GROWTH, old.dtype) * old) & ~first
    ratio = jnp.sqrt(old / jnp.where(young, new, jnp.ones_like(new)))
    out.append(jnp.where(young, u * ratio.astype(u.dtype), u))
  return treedef.unflatten(out)
