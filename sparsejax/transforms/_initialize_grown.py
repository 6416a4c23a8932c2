"""Initial values of grown weights."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from sparsejax.core import (
  InputAxes,
  Moments,
  PyTree,
  Score,
  ScoreInputs,
  SparseState,
  align,
  boxed_like,
  check_callable,
  check_input_axes,
  check_known,
  check_number,
  check_optimizer,
  choose,
  is_placeholder,
  layer_axes,
  leaf_keys,
  named_leaves,
  stacked_axes,
  sum_dtype,
)
from sparsejax.scores import normal_like
from sparsejax.transforms._inner import mask_stored_params

_NAMES = ("zeros", "random", "gradient", "initial")
_SALT = 0x67726F77


class GrownState(NamedTuple):
  """The state of `initialize_grown`.

  Attributes:
    initial: the weights at `init`, if grown weights start from them; else None.
    sparse_state: the sparse optimizer's state.
  """

  initial: PyTree
  sparse_state: SparseState


def initialize_grown(
  tx: optax.GradientTransformation,
  init: str | Score,
  scale: float = 1.0,
  *,
  input_axes: InputAxes = None,
) -> optax.GradientTransformationExtraArgs:
  """Sets the values of grown weights in the step in which they are grown.

  w = scale * v where the mask turned on, in place of the inner optimizer's step from 0

  v is one of: 0 ("zeros"; this returns `tx` unchanged, whose grown weights take the
  update of the same step), N(0, 1 / n_in) ("random"; n_in = inputs times taps), -dL/dw
  ("gradient", a step that reduces the loss), or the value at `init` ("initial"). A
  weight that is dropped and grown again in the same mask update does not count as
  grown: it keeps its value.

  Args:
    tx: an optimizer made by `sparsify` or a method of this package.
    init: one of the four names, or a function `(inputs) -> tree of values`; its
      `inputs.masks` are those before the update, and `inputs.moments` are None.
    scale: factor on the value.
    input_axes: which axes of a kernel are its inputs, for "random"; see `sparsify`.

  Returns:
    An optax transformation; its state contains that of `tx`.

  Raises:
    TypeError: init is neither a name nor a function; scale is not a number; `tx` is not
      a sparse optimizer.
    ValueError: init is an unknown name; scale is not finite; in `init`, n_in is not
      known, see `sparsify`.

  References:
    Evci et al. 2020, "Rigging the lottery", appendix (zeros did best).

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.initialize_grown(sj.rigl(optax.sgd(0.1), density=0.25), "random")
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> int(sj.masks(state)["kernel"].sum())
    16
  """
  check_optimizer("tx", tx, "made by sparsify or a method of sparsejax")
  check_number("scale", scale, "be finite", np.isfinite)
  if isinstance(init, str) and init not in _NAMES:
    raise ValueError(f"init must be one of {list(_NAMES)}, got {init!r}.")
  if not isinstance(init, str) and not callable(init):
    raise TypeError(f"init must be a name or a function of the inputs, got {init!r}.")
  if callable(init):
    check_callable("init", init, "a name or a function of the inputs", 1)
  tx = optax.with_extra_args_support(tx)
  if init == "zeros":
    return tx
  check_input_axes(input_axes)
  values: Any = {"gradient": _downhill}.get(str(init), init)

  def fan_ins(params, state):
    """Returns the number of inputs of a neuron, for each sparsified leaf."""
    chosen = [m is not None for m in align(params, state.masks)]
    axes = layer_axes(params, chosen, _stacked(params, chosen, state), input_axes)
    check_known(axes, "initialize_grown")
    return tuple(a.length((*a.taps, *a.inputs)) for a in axes)

  def init_fn(params):
    state: Any = tx.init(params)
    if not isinstance(state, SparseState):
      raise TypeError(
        "tx must be made by sparsify or a method of sparsejax, got one with the state "
        f"{type(state).__name__}."
      )
    if init == "random" and not is_placeholder(params):
      fan_ins(params, state)
    if init != "initial":
      return GrownState(None, state)
    chosen = [m is not None for m in align(params, state.masks)]
    # A copy, so that a step that donates its params does not delete the state's arrays.
    return GrownState(jax.tree.map(jnp.copy, choose(params, chosen)), state)

  # Compiled once and reused, as `update_if_due` in `sparsify`. Values are computed only
  # in steps in which weights are grown.
  @functools.partial(jax.jit, static_argnames="fan_ins", inline=True)
  def values_if_grown(grown, inputs, fan_ins):
    def new():
      return values(inputs) if fan_ins is None else _random(inputs, fan_ins)

    return lax.cond(
      grown,
      lambda: _like(new(), inputs.params),
      lambda: jax.tree.map(jnp.zeros_like, inputs.params),
    )

  def update_fn(updates, state, params=None, **extra_args):
    # Run the sparse optimizer, then compare its masks before and after the step.
    grads, before = updates, state.sparse_state
    after: Any  # a SparseState; optax's types do not express that
    updates, after = tx.update(grads, before, params, **extra_args)
    old, new = align(params, before.masks), align(params, after.masks)
    chosen = [m is not None for m in new]
    # The values v of all weights, of which only those of grown weights are used.
    inputs = ScoreInputs(
      params=choose(params, chosen),
      grads=choose(grads, chosen),
      moments=Moments(None, None),
      masks=boxed_like(before.masks, choose(params, chosen)),
      key=jax.random.fold_in(jax.random.key(before.seed), before.count),
      step=after.count,
    )
    if init == "initial":
      wanted = state.initial
    else:
      moved = [jnp.any(a & ~b) for a, b in zip(new, old, strict=True) if a is not None]
      n = fan_ins(params, before) if init == "random" else None
      wanted = values_if_grown(jnp.any(jnp.stack(moved)), inputs, n)
    # Where a mask turned on, replace the update by the one that ends at scale * v.
    leaves, treedef = jax.tree.flatten(params)
    values = iter(jax.tree.leaves(wanted))
    stays = [None if a is None else ~a | b for a, b in zip(new, old, strict=True)]
    starts = [
      None if keep is None else jnp.asarray(scale, p.dtype) * next(values)
      for p, keep in zip(leaves, stays, strict=True)
    ]
    flat, updates_def = jax.tree.flatten(updates)
    out = []
    for u, p, keep, v in zip(flat, leaves, stays, starts, strict=True):
      if keep is not None and v is not None:
        dtype = sum_dtype(p, u)
        u = jnp.where(keep, u.astype(dtype), (v - p).astype(dtype))
      out.append(u)
    # A copy of the params that the inner optimizer may have starts there too.
    stays, starts = treedef.unflatten(stays), treedef.unflatten(starts)
    inner_state = mask_stored_params(after.inner_state, params, stays, starts)
    after = after._replace(inner_state=inner_state)
    return updates_def.unflatten(out), GrownState(state.initial, after)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _like(values: PyTree, params: PyTree) -> PyTree:
  return jax.tree.map(lambda v, p: v.astype(p.dtype), values, params)


def _stacked(params: PyTree, chosen: list[bool], state: SparseState):
  """Derives the `stacked` argument from the shapes of the budgets."""
  named = zip(named_leaves(params), chosen, strict=True)
  paths = [path for (path, _), is_chosen in named if is_chosen]
  axes = [stacked_axes(budget) for budget in jax.tree.leaves(state.budgets)]
  found = {path: a for path, a in zip(paths, axes, strict=True) if a}
  return (lambda path, leaf: found.get(path)) if found else False


def _random(inputs: ScoreInputs, fan_ins: tuple[int, ...]) -> PyTree:
  """Draws values from N(0, 1 / n_in) for every sparsified weight."""
  leaves, treedef = jax.tree.flatten(inputs.params)
  keys = leaf_keys(jax.random.fold_in(inputs.key, _SALT), leaves)
  return treedef.unflatten(
    normal_like(key, p) * jnp.float32(n**-0.5)
    for key, p, n in zip(keys, leaves, fan_ins, strict=True)
  )


def _downhill(inputs: ScoreInputs) -> PyTree:
  """Returns the negative gradients."""
  return jax.tree.map(jnp.negative, inputs.grads)
