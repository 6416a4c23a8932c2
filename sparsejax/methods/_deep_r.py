"""Deep-R: deep rewiring (Bellec et al. 2018)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from sparsejax.core import (
  Distribution,
  InputAxes,
  Moments,
  PyTree,
  ScoreInputs,
  SparseState,
  Stacked,
  Topology,
  Where,
  align,
  boxed_like,
  check_number,
  choose,
  leaf_keys,
  may_be_nonzero,
  uniform_like,
  update_or_zero,
  updated,
)
from sparsejax.core.structures import Structure
from sparsejax.distributions import check_density, uniform
from sparsejax.scores import normal_like, random
from sparsejax.transforms import (
  Condensed,
  chain,
  check_schedule,
  grow,
  mask_stored_params,
  mask_update_due,
  sparsify,
)

# Folded into the step's key, so that the three random draws of a step are independent.
_NOISE, _GROWTH, _SIGNS = 0, 1, 2


class DeepRState(NamedTuple):
  """The state of `deep_r`.

  Attributes:
    positive: tree of bool; True where a live weight must be at least zero, False where
      it must be at most zero.
    sparse_state: `SparseState` with the masks, budgets and inner optimizer's state.
  """

  positive: PyTree
  sparse_state: SparseState


def deep_r(
  inner: optax.GradientTransformation,
  density: Any,
  *,
  update_every: int | None = 1,
  start_step: int = 0,
  end_step: int | None = None,
  distribution: Distribution = uniform,
  where: Where = None,
  stacked: Stacked = False,
  input_axes: InputAxes = None,
  seed: Any = 0,
  l1: float = 1e-5,
  noise: float = 0.0,
  structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Drops weights that change sign and regrows at random (Deep-R).

  u = inner(g + l1 s + noise N(0, 1));  live where s (p + u) >= 0;
  then grow(random), with new random signs s

  The inner optimizer receives masked gradients. A sign change is detected in the step
  that causes it, from the inner optimizer's update u: the emitted update is u where a
  live weight keeps its sign and -p everywhere else. So a dropped weight is exactly zero
  after the step. A grown weight also starts from exactly zero. It is live from then on,
  takes its first update in the next step, and is dropped again if that update moves it
  to the side that s forbids. At the start s is the sign of each weight. Each layer
  has exactly as many live weights as its budget at every step.

  Args:
    inner: any optax optimizer.
    density: fraction of weights kept, in (0, 1].
    update_every: steps between mask updates; the paper uses 1. Between mask updates a
      live weight may have the wrong sign.
    start_step: steps before the schedule of mask updates begins.
    end_step: no mask update after this step; None for no limit.
    distribution: sets the budget of each layer at the start.
    where: which leaves are sparsified; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    seed: seed of the first masks and of random scores.
    l1: coefficient of the L1 penalty: l1 times the sign s is added to the gradient of
      live weights. It passes through the inner optimizer, so plain SGD moves a weight
      by learning rate times l1 per step.
    noise: standard deviation of the Gaussian noise added to the gradient of live
      weights; the paper's temperature T is noise^2 * learning rate / 2 under plain SGD.
    structure: must be None.

  Returns:
    An optax transformation; see `sparsify`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected; a structure is
      given, or `inner` is `sj.condensed`.

  References:
    Bellec et al. 2018, "Deep rewiring: training very sparse deep networks",
    algorithm 1.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.deep_r(optax.sgd(0.1), density=0.25)
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> int(sj.masks(state)["kernel"].sum())
    16
  """
  if isinstance(inner, Condensed):
    raise ValueError(
      "inner must have moments of all weights for deep_r, which changes masks after "
      "the inner optimizer's step, got sj.condensed."
    )
  if structure is not None:
    raise ValueError(
      "structure must be None for deep_r, whose weights die one by one, got "
      f"{getattr(structure, 'name', structure)}."
    )
  for name, value in (("l1", l1), ("noise", noise)):
    check_number(name, value, "be at least 0", lambda v: 0 <= v < np.inf)
  check_density(density)
  schedule = check_schedule(update_every, start_step, end_step)
  sparse = sparsify(
    inner,
    chain(),
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
  wake = grow(random)

  def init_fn(params):
    state: Any = sparse.init(params)
    kernels = choose(params, [m is not None for m in align(params, state.masks)])
    return DeepRState(jax.tree.map(lambda p: p >= 0, kernels), state)

  # Compiled once and reused, as `update_if_due` in `sparsify`. Drops the weights that
  # the update moves to the forbidden side of zero, grows as many at random, and draws
  # new signs for the grown ones.
  @functools.partial(jax.jit, inline=True)
  def rewire_if_due(due, kernels, steps, live, budgets, positive, key, step):
    def rewire():
      # Keep the live weights that have the sign s, or are zero, after the update.
      def stays(mask, sign, p, u):
        new = updated(p, u)
        return mask & ~jnp.where(sign, new < 0, new > 0)

      kept = jax.tree.map(stays, live, positive, kernels, steps)
      # Fill the budgets at random. A random score reads only the key and the shapes, so
      # the kernels can stand in for the gradients.
      inputs = ScoreInputs(
        params=kernels,
        grads=kernels,
        moments=Moments(None, None),
        masks=live,
        key=jax.random.fold_in(key, _GROWTH),
        step=step,
      )
      topology = Topology(kept, budgets, jnp.asarray(True))
      masks = wake.update(inputs, topology, ())[0].masks
      # Draw the signs of the grown weights; all others keep theirs.
      coins = _coins(jax.random.fold_in(key, _SIGNS), kernels)
      signs = jax.tree.map(
        lambda new, old, coin, sign: jnp.where(new & ~old, coin, sign),
        masks,
        kept,
        coins,
        positive,
      )
      return masks, kept, signs

    return lax.cond(due, rewire, lambda: (live, live, positive))

  def update_fn(updates, state, params=None, *, update_masks=None, **extra_args):
    before, grads = state.sparse_state, updates
    if params is None:
      raise ValueError(
        "params must be passed to update: tx.update(grads, opt_state, params); "
        "got None."
      )
    chosen = [m is not None for m in align(params, before.masks)]
    key = jax.random.fold_in(jax.random.key(before.seed), before.count)
    # Run the inner optimizer on the penalized, noisy gradients. `sparse` masks them and
    # zeroes masked weights; its masks change only below, where u is known.
    if may_be_nonzero(l1) or may_be_nonzero(noise):
      noise_key = jax.random.fold_in(key, _NOISE)
      grads = _pulled(grads, state.positive, chosen, l1, noise, noise_key)
    after: Any  # a SparseState; optax's types do not express that
    updates, after = sparse.update(
      grads, before, params, update_masks=False, **extra_args
    )
    due = mask_update_due(after.count, update_masks, schedule)
    kernels, step = choose(params, chosen), after.count
    # Masks that were packed may have lost the containers (boxes) of the params.
    live = boxed_like(before.masks, kernels)
    # Drop and grow if due.
    if due is None:
      masks, kept, positive = live, live, state.positive
    else:
      budgets = boxed_like(before.budgets, kernels)
      masks, kept, positive = rewire_if_due(
        due, kernels, choose(updates, chosen), live, budgets, state.positive, key, step
      )
    # Weights that were not kept, the grown ones included, end at exactly zero, also in
    # a copy of the params that the inner optimizer may have.
    inner_state = mask_stored_params(after.inner_state, params, kept)
    after = after._replace(inner_state=inner_state)
    leaves, treedef = jax.tree.flatten(updates)
    emitted = treedef.unflatten(
      u if m is None else update_or_zero(m, u, p)
      for u, p, m in zip(
        leaves, jax.tree.leaves(params), align(params, kept), strict=True
      )
    )
    return emitted, DeepRState(positive, after._replace(masks=masks))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _pulled(grads, positive, chosen, l1, noise, key):
  """Adds the L1 penalty and the noise to the gradients of all sparsified leaves.

  The gradients of masked weights are zeroed later, by `sparsify`.
  """
  leaves, treedef = jax.tree.flatten(grads)
  signs, keys = iter(jax.tree.leaves(positive)), leaf_keys(key, grads)
  out = []
  for g, k, flag in zip(leaves, keys, chosen, strict=True):
    if flag:
      pull = jnp.where(next(signs), l1, -l1).astype(g.dtype)
      g = g + pull
      if may_be_nonzero(noise):
        g = g + (noise * normal_like(k, g)).astype(g.dtype)
    out.append(g)
  return treedef.unflatten(out)


def _coins(key, tree):
  """Draws a tree of fair random bools, used as the signs of grown weights."""
  leaves, treedef = jax.tree.flatten(tree)
  keys = leaf_keys(key, tree)
  return treedef.unflatten(
    uniform_like(k, x) < 0.5 for k, x in zip(keys, leaves, strict=True)
  )
