"""Optimizer states that hold moments of live weights alone."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.extend import core

from sparsejax.core import (
  CondensedState,
  Distribution,
  LayerAxes,
  MaskTransform,
  PyTree,
  align,
  check_optimizer,
  from_vector,
  is_placeholder,
  layer_shapes,
  named_leaves,
  unboxed,
)
from sparsejax.core.structures import Structure
from sparsejax.distributions import layer_budgets, uniform
from sparsejax.transforms._inner import check_inner
from sparsejax.transforms._live_units import (
  Units,
  follow_masks,
  gather,
  list_places,
  scatter,
)
from sparsejax.transforms._moments import factories_of

# The states of optimizers whose moments start from zero, and of wrappers around them.
_STATES = (
  "EmptyState",
  "InjectHyperparamsState",
  "InjectStatefulHyperparamsState",
  "MaskedNode",
  "MaskedState",
  "PartitionState",
  "ScaleByAdamState",
  "ScaleByLionState",
  "ScaleByScheduleState",
  "TraceState",
  "WrappedScheduleState",
)
# The primitives that compute each element of an array from the same element of others.
_ELEMENTWISE = (
  "abs add add_any and cbrt clamp copy copy_p convert_element_type div eq erf exp "
  "exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min "
  "mul ne neg not or pow real reduce_precision round rsqrt select_n "
  "sharding_constraint sign sqrt square stop_gradient sub tanh xor "
)
_SUPPORTED = "optax.sgd (with or without momentum), adam, adamw, lion and the like"


class Condensed(optax.GradientTransformationExtraArgs):
  """An optimizer made by `condensed`; `sparsify` passes the masks to its functions."""

  __slots__ = ()


def condensed(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """Keeps an optimizer's moments for live weights alone; the updates stay the same.

  state(inner) over arrays (..., live) or (..., live blocks * bi, bo), not over kernels

  Use it as the inner optimizer of a method:
  `sj.rigl(sj.condensed(optax.adamw(1e-3)), 0.1, structure=sj.block((128, 128)))`. At
  density d the state takes d times the bytes of the dense one, because it has the live
  blocks of the structure `sj.block` as arrays, and one index per block. Without that
  structure there is an index, of 4 bytes, per live weight: AdamW's state, 8 bytes per
  weight in float32, takes 1.5 d times the bytes of the dense one. The inner optimizer
  computes the updates of live weights alone.

  At a mask update weights that stay live keep their moments, and grown weights start
  from zero moments. So the updates are those of the dense state, weight for weight,
  except for weights that are grown for the second time: in the dense state they still
  have the rest of their old moments, decayed over the steps in between, and here they
  have none, as in the code of RigL's authors.

  Nothing else changes: params, gradients, masks and updates have the shapes of whole
  kernels. The number of live weights of each layer must be known in `init` and must not
  rise later. So the method must keep the budgets of its layers (`rigl`,
  `sparse_evolution`, `static_sparse`) and give masked gradients to its inner optimizer;
  `sj.sparse_momentum`, whose masked weights have momentum, does not. `sj.deep_r`, which
  changes masks after the optimizer's step, refuses it.
  `sj.with_masks` and `sj.densify` refuse the state. Kernels should not be sharded over
  devices, and are refused where `init` can see that they are. Under `jit` the compiler
  may still shard them: the results are the same, but it gathers the kernels on every
  device, and the moments are replicated. Under `vmap` with a batched schedule moments
  are moved at every step.

  Args:
    inner: an optax optimizer that updates each weight by itself, from moments that
      start at zero: `sgd`, with or without (Nesterov) momentum, `adam`, `adamw`, `lion`
      and the like, also in `optax.chain`, `partition`, `masked` and
      `inject_hyperparams`. Clipping by the global norm and other functions of all
      gradients go outside: `optax.chain(clip, sj.rigl(sj.condensed(inner), ...))`.

  Returns:
    An optax transformation for the argument `inner` of `sparsify` and methods.

  Raises:
    TypeError: `inner` is not an optimizer.
    ValueError: where the method is made: the method gives dense gradients to its inner
      optimizer, or moves or raises budgets. In `init`: the optimizer's state or
      operations are not supported, which the message names; the density is traced; a
      kernel is sharded; or it is not inside of a method.

  Example:
    >>> import jax, jax.numpy as jnp, optax, sparsejax as sj
    >>> adam, params = optax.adam(1e-3), {"kernel": jnp.ones((256, 256))}
    >>> blocks = sj.block((64, 64))
    >>> tx = sj.rigl(sj.condensed(adam), density=0.25, structure=blocks)
    >>> _, moments = jax.tree.leaves(tx.init(params).inner_state.inner_state)[1:]
    >>> moments.shape  # 4 of 16 blocks
    (256, 64)
  """
  check_optimizer("inner", inner)
  inner = optax.with_extra_args_support(inner)

  def init_fn(params, masks=None, units: Sequence[Units] = ()):
    if is_placeholder(params):
      # Arrays of live weights do not have the shapes of the params.
      return CondensedState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
    if masks is None:
      raise ValueError(
        "condensed must be the inner optimizer of a method that masks gradients, such "
        "as sj.rigl(sj.condensed(inner), density), got an init without masks."
      )
    entries, rest = align(params, masks), iter(units)
    all_units = [None if mask is None else next(rest) for mask in entries]
    _check_sharding(params, all_units)
    places = [
      None if u is None else list_places(mask, u)
      for mask, u in zip(entries, all_units, strict=True)
    ]
    live = _condense(params, places, all_units)
    state = inner.init(live)
    _check_state(state)
    _check_elementwise(inner, state, live)
    chosen = [u is not None for u in all_units]
    check_inner(inner, state, live, chosen, factories_of(inner))
    treedef = jax.tree.structure(unboxed(params))
    return CondensedState(treedef.unflatten(places), state)

  def update_fn(
    updates,
    state,
    params=None,
    *,
    masks=None,
    due=None,
    units: Sequence[Units] = (),
    **extra_args,
  ):
    # One entry per leaf of the params, None where the leaf is dense.
    entries, rest = align(params, masks), iter(units)
    all_units = [None if mask is None else next(rest) for mask in entries]
    live_masks = [mask for mask in entries if mask is not None]
    # Find the inner optimizer's arrays of live weights, and follow the masks. Masks
    # change at mask updates alone: `sj.with_masks` refuses the state.
    leaves, treedef = jax.tree.flatten(state.inner_state)
    owners = _owners(state.inner_state, unboxed(params), all_units)
    moments = [
      [x for x, owner in zip(leaves, owners, strict=True) if owner == i]
      for i, _ in enumerate(units)
    ]
    places = jax.tree.leaves(state.places)
    if due is not None:
      places, moments = follow_masks(
        jnp.asarray(due), live_masks, places, moments, tuple(units)
      )
    queues = [iter(arrays) for arrays in moments]
    inner_state = treedef.unflatten(
      x if owner is None else next(queues[owner])
      for x, owner in zip(leaves, owners, strict=True)
    )
    # Run the inner optimizer on live weights alone.
    listed = iter(places)
    all_places = [None if u is None else next(listed) for u in all_units]
    live_grads = _condense(updates, all_places, all_units)
    live_params = _condense(params, all_places, all_units)
    out, inner_state = inner.update(live_grads, inner_state, live_params, **extra_args)
    # Put the updates back into whole kernels. Masked weights get zero here; `sparsify`
    # replaces that by the update that takes them to zero.
    spread = [
      x if u is None or place is None else scatter(x, place, u)
      for x, place, u in zip(jax.tree.leaves(out), all_places, all_units, strict=True)
    ]
    places = jax.tree.structure(state.places).unflatten(places)
    return jax.tree.structure(updates).unflatten(spread), CondensedState(
      places, inner_state
    )

  return Condensed(init_fn, update_fn)


def units_of(
  axes: Sequence[LayerAxes], structure: Structure | None, capacities: Sequence[int]
) -> tuple[Units, ...]:
  """Returns the units of each sparsified leaf: blocks, or single weights.

  Args:
    axes: a `LayerAxes` per sparsified leaf.
    structure: as in `sparsify`.
    capacities: the number of units of each leaf that may be live.

  Returns:
    A `Units` per leaf.
  """
  block = None if structure is None else structure.block
  pairs = zip(axes, capacities, strict=True)
  return tuple(Units(a, block or (1, 1), n) for a, n in pairs)


def first_capacities(
  axes: Sequence[LayerAxes],
  density: Any,
  distribution: Distribution,
  structure: Structure | None,
) -> list[int]:
  """Returns the number of units of each sparsified leaf that are live at the start.

  Args:
    axes: a `LayerAxes` per sparsified leaf.
    density: as in `sparsify`.
    distribution: as in `sparsify`.
    structure: as in `sparsify`.

  Returns:
    One integer per leaf.

  Raises:
    ValueError: the density, or what the distribution returns, is traced.
  """
  if density is None:
    density, distribution = 1.0, uniform
  shapes = layer_shapes(axes)
  # The budgets of `start`, evaluated under `jit` too, for they are shapes here.
  with jax.ensure_compile_time_eval():
    budgets = jnp.asarray(0)
    if not isinstance(density, Tracer):
      budgets = layer_budgets(distribution, shapes, density, axes)
      if structure is not None:
        budgets = structure.fit(shapes, budgets)
  if isinstance(density, Tracer) or isinstance(budgets, Tracer):
    raise ValueError(
      "density must be a number that is known in init, for sj.condensed makes arrays "
      f"of as many weights as are live, got {density!r}."
    )
  like = [a.budget for a in axes]
  with jax.ensure_compile_time_eval():
    live = [int(jnp.sum(budget)) for budget in from_vector(budgets, like)]
  block = None if structure is None else structure.block
  return [n // math.prod(block or (1, 1)) for n in live]


def check_condensed(mask_gradients: bool, transform: MaskTransform) -> None:
  """Raises unless a method supports an inner optimizer made by `condensed`.

  Args:
    mask_gradients: whether the inner optimizer receives masked gradients.
    transform: the mask transform of the method.

  Raises:
    ValueError: it does not.
  """
  if not mask_gradients:
    raise ValueError(
      "inner must have moments of masked weights for a method that gives it dense "
      "gradients (mask_gradients=False), such as sparse_momentum, got sj.condensed."
    )
  if not transform.keeps_budgets:
    raise ValueError(
      "inner must not be sj.condensed for a mask transform that may raise the budget "
      "of a layer (redistribute, prune_to, and any without keeps_budgets=True), such "
      "as that of snfs, got sj.condensed."
    )


def _condense(tree, places, units) -> PyTree:
  """Returns a tree without boxes, with the live weights of each sparsified leaf."""
  rows = zip(jax.tree.leaves(tree), places, units, strict=True)
  live = [x if u is None else gather(x, place, u) for x, place, u in rows]
  return jax.tree.structure(unboxed(tree)).unflatten(live)


def _owners(inner_state, params, units) -> list[int | None]:
  """Returns, per leaf of a state, the number of the sparsified leaf it belongs to.

  An array belongs to the leaf with the longest path that its own path ends with, if it
  has the shape of the leaf, or of its live weights where the leaf is sparsified.
  """
  by_path, number = {}, 0
  for (path, leaf), u in zip(
    jax.tree_util.tree_leaves_with_path(params), units, strict=True
  ):
    if u is None:
      by_path[path] = (None, leaf.shape)
    else:
      by_path[path] = (number, u.shape)
      number += 1

  def owner(path, leaf):
    for i in range(len(path) + 1):
      found = by_path.get(path[i:])
      if found is not None and leaf.shape == found[1]:
        return found[0]
    return None

  flat = jax.tree_util.tree_leaves_with_path(inner_state)
  return [owner(path, leaf) for path, leaf in flat]


def _check_sharding(params: PyTree, units: Sequence[Units | None]) -> None:
  """Raises ValueError for a sparsified leaf that is sharded over devices."""
  for (path, leaf), u in zip(named_leaves(params), units, strict=True):
    if u is None:
      continue
    sharding = getattr(jax.typeof(leaf), "sharding", None)
    explicit = sharding is not None and any(axis is not None for axis in sharding.spec)
    concrete = not isinstance(leaf, Tracer) and hasattr(leaf, "sharding")
    if explicit or (concrete and not leaf.sharding.is_fully_replicated):
      raise ValueError(
        "params must not be sharded where sj.condensed keeps live weights alone, got "
        f"{sharding if explicit else leaf.sharding} at {path!r}."
      )


def _check_state(state: PyTree) -> None:
  """Raises ValueError for a state whose moments might not start from zero."""

  def check(node):
    named = isinstance(node, tuple) and hasattr(node, "_fields")
    if named and type(node).__name__ not in _STATES:
      raise ValueError(
        f"inner must be an optimizer that sj.condensed supports, {_SUPPORTED}, got one "
        f"with {type(node).__name__}."
      )
    for child in jax.tree.leaves(node, is_leaf=lambda x: x is not node):
      if child is not node:
        check(child)

  check(state)


def _check_elementwise(inner: Any, state: PyTree, params: PyTree) -> None:
  """Raises ValueError unless the update of each weight depends on that weight alone."""
  try:
    # optax promotes dtypes, which nothing else here does.
    with jax.numpy_dtype_promotion("standard"):
      jaxpr = jax.make_jaxpr(inner.update)(params, state, params).jaxpr
  except TypeError:  # it requires extra arguments, which are known in `update` only
    return
  if name := _mixing(jaxpr):
    raise ValueError(
      "inner must update each weight by itself under sj.condensed, as "
      f"{_SUPPORTED} do, got an update with the operation {name!r}; transforms of all "
      "gradients, such as clipping by the global norm, go outside of the method."
    )


def _mixing(jaxpr: core.Jaxpr) -> str | None:
  """Returns the name of a primitive that is not elementwise on arrays, or None."""
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    called: Any = params.get("jaxpr", params.get("call_jaxpr"))
    if called is not None and name not in ("scan", "while"):
      if found := _mixing(getattr(called, "jaxpr", called)):
        return found
      continue
    operands = [v for v in equation.invars if getattr(v.aval, "shape", ())]
    results = [v for v in equation.outvars if getattr(v.aval, "shape", ())]
    # A scalar, such as the learning rate, may be broadcast.
    if not operands + results or (name == "broadcast_in_dim" and not operands):
      continue
    if name not in _ELEMENTWISE.split():
      return name
  return None
