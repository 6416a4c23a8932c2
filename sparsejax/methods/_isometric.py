"""Dynamic sparse training of deep stacks that stay near isometry."""

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
  drop,
  grow,
  keep,
  masks_containing_support,
  sparsify,
)

Array = jax.Array
PyTree = Any
# What the first masks are drawn with, apart from all other uses of the seed.
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
  """RigL around an orthogonal matrix that each convolution keeps.

  keep(drop(|w|, drop_fraction) > grow(|dL/dw|)), then W[center] on the support <- the
  nearest orthogonal matrix

  For networks too deep for a mask that does not hold an isometry: there a random mask
  of a quarter of the weights passes no signal after some dozens of layers, and no
  gradient. The support is what the initial kernels hold, so take
  `initializers.delta_orthogonal` or, at densities below 1 / 9, `sparse_orthogonal`; the
  first masks are that support and random other weights. The rest moves as in RigL.
  Gradients are masked for the inner optimizer.

  Args:
    inner: any optax optimizer.
    density: fraction of weights live, in (0, 1].
    update_every: steps between mask updates; None fixes the first masks for good.
    start_step: see `sparsify`.
    end_step: see `sparsify`.
    distribution: of the weights live at the start.
    where: see `sparsify`; kernels of convolutions with an orthogonal center of gain 1.
    stacked: see `sparsify`.
    input_axes: see `sparsify`.
    seed: see `sparsify`.
    drop_fraction: share of each layer dropped at a mask update, before the support is
      put back.
    retract: whether the supported matrix is made orthogonal again after a mask update;
      that multiplies matrices, which move where they lie on several devices.

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
  moves = keep(chain(drop(magnitude, drop_fraction), grow(gradient)))
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
    due, step = update_masks, after.count
    if due is None and update_every is not None:
      due = (step > start_step) & ((step - start_step) % update_every == 0)
      if end_step is not None:
        due = due & (step <= end_step)
    if retract and due is not None:
      support, _ = after.transform_state
      chosen = [m is not None for m in align(params, after.masks)]
      axes = layer_axes(params, chosen, stacked, input_axes)
      updates = _retracted(due, updates, params, after, support, axes)
    return updates, after

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@jax.jit
def _first_masks(kernels, budgets, seed):
  """The support of each kernel, and random others up to its budget."""
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
  """Raises ValueError for kernels whose central matrix is not where it is sought."""
  check_known(axes, "isometric")
  for a in axes:
    if a.taps and a.order != tuple(range(len(a.shape))):
      raise ValueError(
        "isometric must get kernels of axes (stacked, taps, inputs, outputs), got "
        f"shape {a.shape} at {a.path!r} with stacked {a.stacked}, inputs {a.inputs} "
        f"and outputs {a.outputs}."
      )


def _retracted(due, updates, params, state, support, axes):
  """Updates that end where the supported matrices are orthogonal, where due."""
  leaves, treedef = jax.tree.flatten(updates)
  out, layers = [], iter(axes)
  for u, p, mask, held in zip(
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

    out.append(_move_if_due(due, u, p, mask, held, len(layer.stacked)))
  return treedef.unflatten(out)


# One function for all steps, as in `sparsify`.
@functools.partial(jax.jit, static_argnames="rows", inline=True)
def _move_if_due(due, u, p, mask, held, rows):
  def move():
    end = _project(updated(p, u), held, rows)
    # `u` has the dtype of the sum, as `sparsify` emits it.
    return jnp.where(mask, end.astype(u.dtype) - p.astype(u.dtype), u)

  return lax.cond(due, move, lambda: u)


def _project(kernel: Array, support: Array, rows: int) -> Array:
  """The kernel with the matrix on its center's support made orthogonal."""
  taps = kernel.shape[rows:-2]
  at = (*(slice(None),) * rows, *((k - 1) // 2 for k in taps))
  matrix, held = kernel[at], support[at]
  near = nearest_orthogonal(jnp.where(held, matrix, jnp.zeros_like(matrix)))
  return kernel.at[at].set(jnp.where(held, near, matrix))
