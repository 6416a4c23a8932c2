"""Sparse optimizers whose masks act in the forward pass only; params stay dense."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.core import (
  Distribution,
  ForwardState,
  InputAxes,
  LayerAxes,
  MaskTransform,
  PyTree,
  SparseState,
  Stacked,
  Where,
  align,
  check_callable,
  choose,
  is_placeholder,
  layer_axes,
  soft_masks,
  updated,
  without_statics,
)
from sparsejax.core.structures import Structure
from sparsejax.distributions import uniform
from sparsejax.transforms._sparsify import check_update, sparsify


def effective(params: PyTree, opt_state: PyTree) -> PyTree:
  """Masks the weights for the forward pass, with straight-through gradients.

  e = w where live, else 0;  de/dw = 1 everywhere

  Under a method with soft masks s (`sj.soft_masks`), e = s w where live, still with
  de/dw = 1: the method turns dL/de into the gradients that its paper prescribes.

  Call it inside the loss: `loss(sj.effective(params, opt_state), batch)`. Its result
  has exact zeros and exact counts, while `params` stay dense. For a checkpoint to be
  served, store this result. With an optimizer made by
  `sparsify`, whose masked weights are already zero, it returns the values of `params`,
  and masked weights get gradients too.

  Args:
    params: any pytree of arrays.
    opt_state: the state of an optimizer made by this package, possibly nested, of the
      same step as the params.

  Returns:
    The effective weights, a tree like `params` with the same dtypes; leaves without a
    mask are unchanged.

  Raises:
    ValueError: structures or shapes differ; there is no sparse optimizer in the state.

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
  entries = align(params, soft_masks(opt_state), strict=False)
  both = zip(leaves, entries, strict=True)
  return treedef.unflatten(p if m is None else _through(p, m) for p, m in both)


# The tangent of the weight passes through unchanged, at masked entries too.
@jax.custom_jvp
def _through(weight, mask):
  if mask.dtype == bool:
    return jnp.where(mask, weight, jnp.zeros_like(weight))
  # A product alone would give -0.0 for negative weights, and NaN for infinite ones.
  product = weight * mask.astype(weight.dtype)
  return jnp.where(mask > 0, product, jnp.zeros_like(weight))


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
  soften: Callable[[PyTree, SparseState, Sequence[LayerAxes]], PyTree] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Trains dense weights with masks that act in the forward pass only.

  u = inner(g);  p' = p + u;  if due: masks = mask_transform(p', g, ...)

  The loss must use `sj.effective(params, opt_state)` as its weights. The masks in the
  state are those for the next forward pass. That includes the first ones: `init` runs
  the mask transform on the initial weights.

  Args:
    inner: any optax optimizer; it updates all weights, which stay dense.
    mask_transform: changes the masks and budgets when a mask update is due; it gets the
      params after this step.
    density: fraction of weights kept, in (0, 1], at the start; see `sparsify`.
    update_every: steps between mask updates.
    start_step: steps before the schedule of mask updates begins.
    end_step: no mask update after this step; None for no limit.
    distribution: sets the budget of each layer at the start.
    where: which leaves are sparsified; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    seed: seed of the first masks and of random scores.
    structure: which patterns of live weights are allowed; see `sparsify`.
    gradients: `(grads, params, state) -> grads`, changes the gradients before the inner
      optimizer receives them; None leaves them unchanged.
    movable: `state -> masks`, the weights that may change; the updates of all others
      are zeroed, whatever momentum or weight decay adds. None for all.
    soften: `(weights, state, axes) -> soft masks`, called at every step with the
      sparsified leaves after the step and the new state; `axes` has a `LayerAxes` per
      leaf, in flattening order. It returns the soft masks of the next forward pass:
      float arrays of at least 0 in place of `state.masks`, which act where these are
      True; see `sj.soft_masks`. None for a method that masks by `state.masks` alone.

  Returns:
    An optax transformation with a `ForwardState`; see `sparsify`. Transformations after
    it in a chain must not change its updates, or the masks will not match the params.

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

  # Validate all arguments, those of `sparsify` included.
  masked_by(inner)
  for name, value, what, arguments in (
    ("gradients", gradients, "a function of (gradients, params, state)", 3),
    ("movable", movable, "a function of the state", 1),
    ("soften", soften, "a function of (weights, state, axes)", 3),
  ):
    if value is not None:
      check_callable(name, value, what, arguments)
  inner = optax.with_extra_args_support(inner)

  def untouched(updates, state, params=None):
    return updates, state

  # Updates the masks only: this `sparsify` runs no optimizer, but its state contains
  # the inner optimizer's state, for `update_fn` below.
  masking = masked_by(optax.GradientTransformation(inner.init, untouched))

  # Returns the state with the soft masks that belong to its masks and these params.
  def softened(params, state):
    if soften is None:
      return state
    chosen = [m is not None for m in align(params, state.masks)]
    axes = layer_axes(params, chosen, stacked, input_axes)
    return state._replace(soft_masks=soften(choose(params, chosen), state, axes))

  # Runs the mask transform on the initial weights. Compiled as one program: run
  # eagerly, every loop inside would be compiled separately.
  @jax.jit
  def first_masks(params, state: Any):
    grads = jax.tree.map(jnp.zeros_like, params)
    # Counted as update number zero, so that the first step draws other random numbers.
    state = state._replace(count=jnp.full_like(state.count, -1))
    _, state = masking.update(grads, state, params, update_masks=jnp.asarray(True))
    state = softened(params, state)
    return (
      state.masks,
      state.budgets,
      state.skipped,
      state.transform_state,
      state.soft_masks,
    )

  def init_fn(params):
    state: Any = masking.init(params)
    if is_placeholder(params):
      soft = None if soften is None else params
      return ForwardState(*state._replace(soft_masks=soft))
    masks, budgets, skipped, after, soft = first_masks(params, state)
    state = state._replace(
      masks=masks,
      budgets=budgets,
      skipped=skipped,
      transform_state=after,
      soft_masks=soft,
    )
    return ForwardState(*state)

  def update_fn(updates, state, params=None, *, update_masks=None, **extra_args):
    params = without_statics(params, updates)
    grads = updates
    check_update(grads, state, params, update_masks)
    # Run the inner optimizer on all weights, with the method's changed gradients.
    seen = grads if gradients is None else gradients(grads, params, state)
    updates, inner_state = inner.update(seen, state.inner_state, params, **extra_args)
    # Zero the updates of weights that must not change.
    if movable is not None:
      leaves, treedef = jax.tree.flatten(updates)
      free = align(params, movable(state))
      updates = treedef.unflatten(
        u if m is None else jnp.where(m, u, jnp.zeros_like(u))
        for u, m in zip(leaves, free, strict=True)
      )
    # Update the masks for the params as they will be after `optax.apply_updates`.
    after = jax.tree.map(updated, params, updates)
    state = state._replace(inner_state=inner_state)
    masked: Any
    _, masked = masking.update(grads, state, after, update_masks=update_masks)
    # `sparsify` knows no soft masks; `soften` may use the old ones.
    masked = masked._replace(soft_masks=state.soft_masks)
    return updates, ForwardState(*softened(after, masked))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def map_masked(
  function: Callable[..., jax.Array], grads: PyTree, params: PyTree, *masks: PyTree
) -> PyTree:
  """Changes gradients at the sparsified leaves by `function(grad, param, *masks)`.

  Args:
    function: takes arrays of one leaf and returns its new gradient.
    grads: the gradients.
    params: the params.
    *masks: trees with None at the leaves that are not sparsified.

  Returns:
    The gradients; leaves without a mask are unchanged.
  """
  leaves, treedef = jax.tree.flatten(grads)
  columns = [align(params, tree) for tree in masks]
  rows = zip(leaves, jax.tree.leaves(params), *columns, strict=True)
  return treedef.unflatten(row[0] if row[2] is None else function(*row) for row in rows)


def map_layers(
  function: Callable[..., jax.Array],
  axes: Sequence[LayerAxes],
  tree: PyTree,
  *others: PyTree,
) -> PyTree:
  """Computes `function(layer_axes, *arrays)` for each sparsified leaf.

  Args:
    function: takes the `LayerAxes` and the arrays of one leaf and returns an array.
    axes: one `LayerAxes` per leaf, in flattening order.
    tree: the sparsified leaves.
    *others: trees with the same leaves; boxes around arrays may differ.

  Returns:
    The results, in the containers of `tree`.
  """
  leaves, treedef = jax.tree.flatten(tree)
  columns = [jax.tree.leaves(other) for other in others]
  return treedef.unflatten(map(function, axes, leaves, *columns))
