"""Masks that act in the forward pass only, over weights that stay dense."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.core import (
  Distribution,
  ForwardState,
  InputAxes,
  MaskTransform,
  PyTree,
  SparseState,
  Stacked,
  Where,
  align,
  check_callable,
  is_placeholder,
  updated,
)
from sparsejax.core import masks as find_masks
from sparsejax.core.structures import Structure
from sparsejax.distributions import uniform
from sparsejax.transforms._sparsify import check_update, sparsify, without_statics


def effective(params: PyTree, opt_state: PyTree) -> PyTree:
  """The weights that the forward pass sees, straight-through in the backward pass.

  e = w where live, else 0;  de/dw = 1 everywhere

  Call it inside the loss: `loss(sj.effective(params, opt_state), batch)`. Exact zeros
  and exact counts hold for what it returns, while `params` stay dense; what goes into
  a checkpoint to be served is `sj.apply_masks(params, sj.masks(opt_state))`. With
  an optimizer of `sparsify` it returns `params`, with gradients for dead weights too.

  Args:
    params: any pytree of arrays.
    opt_state: the state of an optimizer made by this package, possibly nested, of the
      same step as the params.

  Returns:
    The same container with the same dtypes; leaves without a mask unchanged.

  Raises:
    ValueError: structures or shapes differ; there is no sparsified optimizer.

  References:
    Bengio, Léonard & Courville 2013, "Estimating or propagating gradients through
    stochastic neurons".

  Example:
    >>> import jax, jax.numpy as jnp, optax, sparsejax as sj
    >>> params = {"kernel": jnp.array([[1.0, -2.0]])}
    >>> state = sj.straight_through(optax.sgd(0.1), density=0.5).init(params)
    >>> loss = lambda params: jnp.sum(sj.effective(params, state)["kernel"] ** 2)
    >>> loss(params), jax.grad(loss)(params)["kernel"]
    (Array(4., dtype=float32), Array([[ 0., -4.]], dtype=float32))
  """
  leaves, treedef = jax.tree.flatten(params)
  entries = align(params, find_masks(opt_state), strict=False)
  both = zip(leaves, entries, strict=True)
  return treedef.unflatten(p if m is None else _through(p, m) for p, m in both)


@jax.custom_jvp
def _through(weight, mask):
  return jnp.where(mask, weight, jnp.zeros_like(weight))


@_through.defjvp
def _through_jvp(primals, tangents):
  return _through(*primals), tangents[0]


def sparsify_forward(
  inner: optax.GradientTransformation,
  mask_transform: MaskTransform,
  density: Any = None,
  *,
  update_every: int | None = 1,
  start_step: int = 0,
  end_step: int | None = None,
  distribution: Distribution = uniform,
  where: Where = None,
  stacked: Stacked = False,
  input_axes: InputAxes = None,
  seed: Any = 0,
  structure: Structure | None = None,
  gradients: Callable[[PyTree, PyTree, SparseState], PyTree] | None = None,
  movable: Callable[[SparseState], PyTree] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Trains dense weights whose forward pass is sparse: `sparsify` for `effective`.

  u = inner(g);  p' = p + u;  if due: masks = mask_transform(p', g, ...)

  The loss takes its weights from `sj.effective(params, opt_state)`. The masks in the
  state are those of the params in the next forward pass, the first ones included: init
  runs the mask transform on the weights it is given.

  Args:
    inner: any optax optimizer; all weights are its own, and stay dense.
    mask_transform: what happens to the masks when an update is due; it sees the params
      after this step.
    density: fraction of weights live at the start; see `sparsify`.
    update_every: steps between mask updates.
    start_step: steps before the schedule of mask updates begins.
    end_step: no mask update after this step; None for no limit.
    distribution: see `sparsify`.
    where: which leaves are sparsified; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    seed: seed of the first masks and of random scores.
    structure: which patterns of live weights are allowed; see `sparsify`.
    gradients: `(grads, params, state) -> grads`: what the inner optimizer gets.
    movable: `state -> masks`: the weights that may move at all, for an inner optimizer
      with momentum or weight decay; None for all.

  Returns:
    An optax transformation with a `ForwardState`; see `sparsify`. What comes after it
    in a chain must leave its updates as they are, or the masks lag behind the params.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected; the structure
      does not fit.

  Example:
    >>> import optax, sparsejax as sj
    >>> transform = sj.reselect(sj.magnitude, 0.1)
    >>> tx = sj.sparsify_forward(optax.sgd(0.1), transform, density=0.1)
  """

  def masked_by(optimizer):
    return sparsify(
      optimizer,
      mask_transform,
      density,
      update_every=update_every,
      start_step=start_step,
      end_step=end_step,
      distribution=distribution,
      where=where,
      stacked=stacked,
      input_axes=input_axes,
      seed=seed,
      structure=structure,
    )

  masked_by(inner)  # complains of bad arguments, the optimizer's too
  for name, value, what, arguments in (
    ("gradients", gradients, "a function of (gradients, params, state)", 3),
    ("movable", movable, "a function of the state", 1),
  ):
    if value is not None:
      check_callable(name, value, what, arguments)
  inner = optax.with_extra_args_support(inner)

  def untouched(updates, state, params=None):
    return updates, state

  # The masks alone: its state holds the inner optimizer's, and hands it on.
  masking = masked_by(optax.GradientTransformation(inner.init, untouched))

  # Run eagerly, every loop in it would compile by itself.
  @jax.jit
  def first_masks(params, state: Any):
    grads = jax.tree.map(jnp.zeros_like, params)
    # Update number zero, so that the first step draws other random numbers.
    state = state._replace(count=jnp.full_like(state.count, -1))
    _, state = masking.update(grads, state, params, update_masks=jnp.asarray(True))
    return state.masks, state.budgets, state.skipped, state.transform_state

  def init_fn(params):
    state: Any = masking.init(params)
    if is_placeholder(params):
      return ForwardState(*state)
    masks, budgets, skipped, after = first_masks(params, state)
    state = state._replace(
      masks=masks, budgets=budgets, skipped=skipped, transform_state=after
    )
    return ForwardState(*state)

  def update_fn(updates, state, params=None, *, update_masks=None, **extra_args):
    params = without_statics(params, updates)
    grads = updates
    check_update(grads, state, params, update_masks)
    seen = grads if gradients is None else gradients(grads, params, state)
    updates, inner_state = inner.update(seen, state.inner_state, params, **extra_args)
    if movable is not None:
      leaves, treedef = jax.tree.flatten(updates)
      free = align(params, movable(state))
      updates = treedef.unflatten(
        u if m is None else jnp.where(m, u, jnp.zeros_like(u))
        for u, m in zip(leaves, free, strict=True)
      )
    after = jax.tree.map(updated, params, updates)
    state = state._replace(inner_state=inner_state)
    masked: Any
    _, masked = masking.update(grads, state, after, update_masks=update_masks)
    return updates, ForwardState(*masked)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def map_masked(
  function: Callable[..., jax.Array], grads: PyTree, params: PyTree, *masks: PyTree
) -> PyTree:
  """Gradients changed at the sparsified leaves: `function(grad, param, *masks)`."""
  leaves, treedef = jax.tree.flatten(grads)
  columns = [align(params, tree) for tree in masks]
  rows = zip(leaves, jax.tree.leaves(params), *columns, strict=True)
  return treedef.unflatten(row[0] if row[2] is None else function(*row) for row in rows)
