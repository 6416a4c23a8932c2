"""First and second moments in the states of optax optimizers.

A running average is found by the name of its field in the optimizer's state. Names
alone can mislead; this table lists how the states of optax's optimizers are read:

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
| galore | its own | -, for its base optimizer gets projected gradients | - |
| mechanize | its own | -, for its `m` and `v` belong to learning rates | - |
| all others | | - | - |

"Divided already" means that the optimizer divides by the second moment before it
averages. Where no state has the first moments of all leaves, `sparsify` can keep an
average of its own (`momentum_decay`). Optimizers from elsewhere are read by the names
in the first three rows; scores check by value that a second moment is not negative
(`scores.momentum`).
"""

import functools
import inspect
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.core import Moments, PyTree, align, choose, stacked_axes

# The names of fields that contain a running average of the gradient. `nu` and
# `acc_grads` have the params' shapes too, but are no such average.
_FIRST = ("trace", "mu", "momentum", "m", "ema")
_SECOND = ("nu", "v")
# States whose field names mislead, with the fields of their first and second moment.
_FIELDS: dict[str, tuple[str | None, str | None]] = {
  "ScaleByAdanState": ("m", "n"),
  "ScaleByAdemamixState": ("m1", "nu"),
  "ScaleBySimplifiedAdEMAMixState": ("m", "n"),
  "ScaleByNovogradState": ("mu", None),
  "SophiaState": ("mu", None),
  "ScaleBySM3State": ("nu", None),
  "MechanicState": (None, None),
}
# States whose inner optimizer gets other gradients than those of the params.
_OPAQUE = ("GaLoreState",)


def find_moments(
  inner_state: PyTree,
  params: PyTree,
  chosen: list[bool],
  factories: frozenset[str] = frozenset(),
) -> Moments:
  """Finds the inner optimizer's moments of the chosen leaves.

  A moment is an array in one of the fields above, at the parameter's path and of the
  parameter's shape. The second moment must be in the same state as the first: RMSProp
  with momentum divides before it averages, so its `nu`, which is in another state, is
  not used.

  Scores compare leaves with each other, and moments of different states are not
  comparable: SGD's trace is a sum, Adam's `mu` a mean, Adopt's `mu` is divided already,
  and two Adams may have different decays. So all moments come from one state, the first
  that has a first moment of every chosen leaf; second moments are used for all leaves
  or for none.

  Args:
    inner_state: the state of any optax optimizer.
    params: the params with which the state was initialized.
    chosen: one bool per leaf of `params`.
    factories: the result of `factories_of` for the optimizer; it tells apart optimizers
      that share a type of state. If an optimizer contains adopt and another, its states
      are all read as adopt's: without a second moment.

  Returns:
    `Moments` with None at leaves that are not chosen. `first` is None everywhere if no
    state has a first moment of every chosen leaf, `second` likewise.
  """
  divided = not factories.isdisjoint(("scale_by_adopt", "adopt"))
  maximum = not factories.isdisjoint(("scale_by_adamax", "adamax", "adamaxw"))
  chosen_params = choose(params, chosen)
  treedef = jax.tree.structure(chosen_params)
  none = treedef.unflatten([None] * treedef.num_leaves)
  leaves = jax.tree_util.tree_leaves_with_path(chosen_params)
  shaped = lambda x, leaf: getattr(x, "shape", None) == leaf.shape
  for by_path_first, by_path_second, _ in _pairs(inner_state):
    firsts = [by_path_first.get(path) for path, _ in leaves]
    seconds = [by_path_second.get(path) for path, _ in leaves]
    if not all(shaped(m, p) for m, (_, p) in zip(firsts, leaves, strict=True)):
      continue
    first = treedef.unflatten(firsts)
    if divided or not all(
      shaped(v, p) for v, (_, p) in zip(seconds, leaves, strict=True)
    ):
      return Moments(first, none)
    if maximum:
      seconds = [jnp.square(v) for v in seconds]
    return Moments(first, treedef.unflatten(seconds))
  return Moments(none, none)


def _pairs(node: PyTree, masked: bool = False) -> Iterator[tuple[dict, dict, bool]]:
  """Yields first and second moments by path, for every state inside a state.

  The third value says whether `optax.masked` or `optax.partition` leaves out leaves.
  """
  name = type(node).__name__
  if name in _OPAQUE:
    return
  children = jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda x: x is not node)
  # The fields of this node by name; leaves and nodes without fields end the recursion.
  fields: dict[Any, PyTree] = {}
  for path, child in children:
    if not path:  # a leaf
      return
    fields[getattr(path[0], "name", None)] = child
    if len(path) > 1:  # several levels at once: not a container
      return
  # The names of its moments: from the table where the usual names mislead.
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
      yield by_path(fields[n]), second, masked
  masked = masked or isinstance(node, optax.MaskedState)
  for _, child in children:
    yield from _pairs(child, masked)


def factories_of(optimizer: Any) -> frozenset[str]:
  """Returns the names of the functions that built an optimizer.

  Several optimizers share a type of state: `optax.contrib.adopt` has that of Adam, and
  `optax.contrib.acprop` that of AdaBelief. They are told apart by the function that
  made their `update`. It is found in the closures of `optax.chain` and similar
  functions, or among the names used by the function that `optax.inject_hyperparams`
  was given.

  Args:
    optimizer: any optax transformation.

  Returns:
    A set of names that contains "scale_by_adam" and the like, among other names.

  Example:
    >>> import optax
    >>> "scale_by_adam" in factories_of(optax.chain(optax.clip(1.0), optax.adam(0.1)))
    True
    >>> "adopt" in factories_of(optax.inject_hyperparams(optax.contrib.adopt)(0.1))
    True
  """
  # Visit everything that can be reached from the optimizer and collect the names of
  # the functions, and the names that these use.
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
  """Returns what a function refers to: its closure, bound object, wrapped function."""
  closed_over = []
  for cell in getattr(function, "__closure__", None) or ():
    try:
      closed_over.append(cell.cell_contents)
    except ValueError:  # not filled yet
      continue
  closed_over += [getattr(function, name, None) for name in ("__self__", "__wrapped__")]
  return closed_over


def wide_zeros(weights: jax.Array) -> jax.Array:
  """Returns zeros for a running sum: of the weights' shape, in float32 or wider.

  In bfloat16 a decay of 0.999 rounds to 1; in float16 a sum of gradients overflows.
  """
  wide = jnp.finfo(weights.dtype).bits > 32
  return jnp.zeros_like(weights, dtype=weights.dtype if wide else jnp.float32)


def complete(moments: Moments, params: PyTree, chosen: list[bool]) -> bool:
  """Returns whether every chosen leaf has a first moment."""
  wanted = jax.tree.leaves(choose(params, chosen))
  return len(jax.tree.leaves(moments.first)) == len(wanted)


def surely_holds_momentum(inner_state: PyTree) -> bool:
  """Returns whether a state holds the first moments of all leaves, whatever the params.

  That is so if one state has them and is not inside `optax.masked` or
  `optax.partition`. Otherwise the params tell, which `optax.tree_map_params` does not
  pass; the answer is the same for its placeholder as for params.

  Args:
    inner_state: the state that an optimizer's `init` returned.

  Returns:
    Whether one state only, of all leaves, has a field of a first moment.
  """
  return [masked for *_, masked in _pairs(inner_state)] == [False]


def fill_dead_second_moments(
  inner_state: PyTree, grads: PyTree, params: PyTree, masks: PyTree, budgets: PyTree
) -> PyTree:
  """Gives masked weights the mean second moment of their layer's live weights.

  v' = v where live; elsewhere max(mean of the layer's live v, g^2)

  `optax.contrib.acprop` divides the gradient by the root of the previous second moment.
  Where gradients are masked, that of a masked weight decays to 1e-13 and less, and bias
  correction does not help, for it counts the optimizer's steps and not the weight's:
  the first two steps of a grown weight could be thousands of learning rates long.

  With v', a weight grown in this step moves by at most one learning rate, since
  v' >= g^2 (except in the very first step of training, in which ACProp divides by 1).
  Its later steps are divided as those of an average weight of its layer. v' is filled
  in at every step, so it is also there for weights that are grown outside of
  `sparsify`, as in `deep_r`; their first gradient comes one step later, so their first
  step is already one of the later ones.

  Args:
    inner_state: the inner optimizer's state before its step.
    grads: gradients, zero where a weight is masked after this step's mask update.
    params: the params.
    masks: tree of bool, the masks before this step's mask update.
    budgets: tree of int32, whose shapes tell stacked leaves.

  Returns:
    The state with v' in place of v in each `optax.ScaleByBeliefState`, which is the
    state of ACProp (and of AdaBelief, for which `sparsify` does not call this).

  References:
    Zhuang et al. 2021, "Momentum centering and asynchronous update for adaptive
    gradient methods", algorithm 3.
  """
  leaves = jax.tree_util.tree_leaves_with_path(params)
  budget_leaves = iter(jax.tree.leaves(budgets))
  layers = {
    path: (mask, g, next(budget_leaves))
    for (path, _), mask, g in zip(
      leaves, align(params, masks), jax.tree.leaves(grads), strict=True
    )
    if mask is not None
  }

  def fill(path, v):
    if path not in layers:
      return v
    mask, g, budget = layers[path]
    axes = tuple(i for i in range(v.ndim) if i not in stacked_axes(budget))
    wide = wide_zeros(v).dtype
    finite = mask & jnp.isfinite(v)  # one overflow must not reach the whole layer
    total = jnp.sum(
      jnp.where(finite, v, jnp.zeros_like(v)).astype(wide), axes, keepdims=True
    )
    count = jnp.sum(finite, axes, keepdims=True, dtype=jnp.int32)
    mean = (total / jnp.maximum(count, 1).astype(wide)).astype(v.dtype)
    return jnp.where(mask, v, jnp.maximum(mean, jnp.square(g.astype(v.dtype))))

  def fill_state(node):
    if not isinstance(node, optax.ScaleByBeliefState):
      return node
    return node._replace(nu=jax.tree_util.tree_map_with_path(fill, node.nu))

  is_belief = lambda node: isinstance(node, optax.ScaleByBeliefState)
  return jax.tree.map(fill_state, inner_state, is_leaf=is_belief)
