"""Dynamic sparse training of very deep networks whose layers stay near isometry."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparsejax.core import (
  Distribution,
  InputAxes,
  Stacked,
  Topology,
  Where,
  align,
  boxed_like,
  check_flag,
  check_known,
  choose,
  is_placeholder,
  layer_axes,
  leaf_keys,
  nearest_orthogonal,
  true_like,
  uniform_like,
  updated,
  with_masks,
)
from sparsejax.distributions import check_density, uniform
from sparsejax.scores import gradient, magnitude
from sparsejax.transforms import (
  Fraction,
  chain,
  check_schedule,
  drop,
  fraction_rule,
  grow,
  keep,
  mask_update_due,
  masks_containing_support,
  sparsify,
)

Array = jax.Array
PyTree = Any
# Folded into the seed's key, so that the first masks are independent of other draws.
_STREAM = 17


def isometric(
  inner: optax.GradientTransformation,
  density: Any,
  *,
  update_every: int | None = 100,
  start_step: int = 0,
  end_step: int | None = None,
  distribution: Distribution = uniform,
  where: Where = None,
  stacked: Stacked = False,
  input_axes: InputAxes = None,
  seed: Any = 0,
  drop_fraction: Fraction = 0.3,
  retract: bool = True,
) -> optax.GradientTransformationExtraArgs:
  """Trains by RigL and keeps an orthogonal matrix live in each convolution.

  keep(drop(|w|, drop_fraction) > grow(|dL/dw|)), then W[center] on the support <- the
  nearest orthogonal matrix

  For networks so deep that every layer must be close to an isometry: with random masks
  at a density of 0.25, neither signals nor gradients pass more than some dozens of
  layers. The support is the set of nonzero weights in the initial kernels. Initialize
  with `initializers.delta_orthogonal` or, at densities below 1 / 9, with
  `sparse_orthogonal`. The first masks are the support and random other weights. Weights
  outside of the support are dropped and grown as in RigL. The inner optimizer receives
  masked gradients.

  Args:
    inner: any optax optimizer.
    density: fraction of weights kept, in (0, 1].
    update_every: steps between mask updates; None for no schedule: masks then change
      only when `update_masks=True` is passed to the update.
    start_step: steps before the schedule of mask updates begins.
    end_step: no mask update after this step; None for no limit.
    distribution: sets the budget of each layer at the start.
    where: which leaves are sparsified; see `sparsify`. They should be kernels of
      convolutions whose central matrix is orthogonal with gain 1.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    seed: seed of the first masks and of random scores.
    drop_fraction: fraction of each layer's budget dropped at a mask update: a float or
      a schedule. The support is restored afterwards.
    retract: whether the central matrix on the support is made orthogonal again at each
      mask update. That multiplies matrices, which for sharded kernels requires
      communication between devices.

  Returns:
    An optax transformation; see `sparsify`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected.

  Example:
    >>> import jax, optax, sparsejax as sj
    >>> from sparsejax import initializers
    >>> init = initializers.delta_orthogonal(stacked=True)
    >>> params = {"kernel": init(jax.random.key(0), (10, 3, 3, 4, 4))}
    >>> tx = sj.isometric(optax.sgd(0.1), density=0.25, stacked="kernel")
    >>> masks = sj.masks(tx.init(params))["kernel"]
    >>> bool(masks[:, 1, 1].all()), float(masks.mean())
    (True, 0.25)
  """
  check_density(density)
  check_flag("retract", retract)
  schedule = check_schedule(update_every, start_step, end_step)
  moves = keep(
    chain(
      drop(magnitude, fraction_rule(drop_fraction, "drop_fraction")), grow(gradient)
    )
  )
  sparse = sparsify(
    inner,
    moves._replace(check=_check),
    density,
    update_every=update_every,
    start_step=start_step,
    end_step=end_step,
    distribution=distribution,
    where=where,
    stacked=stacked,
    input_axes=input_axes,
    seed=seed,
    mask_gradients=True,
  )

  def init_fn(params):
    # Replace the random first masks of `sparsify` by masks that contain the support.
    state: Any = sparse.init(params)
    if is_placeholder(params):
      return state
    chosen = [m is not None for m in align(params, state.masks)]
    kernels = choose(params, chosen)
    budgets = boxed_like(state.budgets, kernels)
    return with_masks(state, _first_masks(kernels, budgets, state.seed))

  def update_fn(updates, state, params=None, *, update_masks=None, **extra_args):
    updates, after = sparse.update(
      updates, state, params, update_masks=update_masks, **extra_args
    )
    after: Any = after
    # Make the matrices orthogonal in exactly those steps in which `sparsify` updates
    # the masks.
    due = mask_update_due(after.count, update_masks, schedule)
    if retract and due is not None:
      support, _ = after.transform_state
      chosen = [m is not None for m in align(params, after.masks)]
      axes = layer_axes(params, chosen, stacked, input_axes)
      updates = _retracted(due, updates, params, after, support, axes)
    return updates, after

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@jax.jit
def _first_masks(kernels, budgets, seed):
  """Returns masks of the support and of random other weights, up to the budgets."""
  key = jax.random.fold_in(jax.random.key(seed), _STREAM)
  leaves, treedef = jax.tree.flatten(kernels)
  draws = [
    uniform_like(k, p) for k, p in zip(leaf_keys(key, leaves), leaves, strict=True)
  ]
  support = jax.tree.map(lambda p: p != 0, kernels)
  everything = jax.tree.map(true_like, kernels)
  topology = Topology(everything, budgets, jnp.asarray(True))
  return masks_containing_support(support, treedef.unflatten(draws), topology)


def _check(axes):
  """Raises ValueError for kernels whose axes are not in the order that is assumed."""
  check_known(axes, "isometric")
  for a in axes:
    if a.taps and a.order != tuple(range(len(a.shape))):
      raise ValueError(
        "isometric must be used for kernels of axes (stacked, taps, inputs, outputs), "
        f"got shape {a.shape} at {a.path!r} with stacked {a.stacked}, inputs "
        f"{a.inputs} and outputs {a.outputs}."
      )


def _retracted(due, updates, params, state, support, axes):
  """Returns updates after which the matrices on the support are orthogonal, if due."""
  leaves, treedef = jax.tree.flatten(updates)
  out, layers = [], iter(axes)
  for u, p, mask, live_support in zip(
    leaves,
    jax.tree.leaves(params),
    align(params, state.masks),
    align(params, support),
    strict=True,
  ):
    layer = None if mask is None else next(layers)
    if layer is None or not layer.taps:
      out.append(u)
      continue

    out.append(_move_if_due(due, u, p, mask, live_support, len(layer.stacked)))
  return treedef.unflatten(out)


# Compiled once and reused, as `update_if_due` in `sparsify`. Returns the update that
# takes the live weights of one kernel from p to the projection of p + u.
@functools.partial(jax.jit, static_argnames="rows", inline=True)
def _move_if_due(due, u, p, mask, live_support, rows):
  """Changes one kernel's update so that its central matrix ends orthogonal, if due."""

  def move():
    end = _project(updated(p, u), live_support, rows)
    # `u` has the dtype of the sum, as `sparsify` emits it.
    return jnp.where(mask, end.astype(u.dtype) - p.astype(u.dtype), u)

  return lax.cond(due, move, lambda: u)


def _project(kernel: Array, support: Array, rows: int) -> Array:
  """Replaces the central matrix, on the support, by the nearest orthogonal matrix.

  Args:
    kernel: (*stacked, *taps, inputs, outputs).
    support: bool, of the kernel's shape.
    rows: number of axes that stack layers.

  Returns:
    An array like `kernel`.
  """
  taps = kernel.shape[rows:-2]
  at = (*(slice(None),) * rows, *((k - 1) // 2 for k in taps))
  matrix, live_support = kernel[at], support[at]
  near = nearest_orthogonal(jnp.where(live_support, matrix, jnp.zeros_like(matrix)))
  return kernel.at[at].set(jnp.where(live_support, near, matrix))
