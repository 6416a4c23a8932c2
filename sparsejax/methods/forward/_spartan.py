"""Spartan: soft top-k masks by regularized transportation (Tai et al. 2022)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from sparsejax.core import (
  Distribution,
  InputAxes,
  LayerAxes,
  Stacked,
  Where,
  align,
  check_integer,
  check_number,
  choose,
  layer_axes,
)
from sparsejax.distributions import EndingSchedule, check_density, uniform
from sparsejax.scores import magnitude
from sparsejax.transforms import (
  check_schedule,
  check_some_update,
  reselect,
  sparsify_forward,
)

# Newton's method takes one to four steps from the first guess. Bisection replaces steps
# that leave the bracket; it takes 24 for all bits of a float32.
_MOST_STEPS = 40
_TOLERANCE = 1e-5  # of the number of live weights


def spartan(
  inner: optax.GradientTransformation,
  density: Any,
  *,
  update_every: int | None = 1,
  start_step: int = 0,
  end_step: int | None = None,
  distribution: Distribution | None = uniform,
  where: Where = None,
  stacked: Stacked = False,
  input_axes: InputAxes = None,
  seed: Any = 0,
  initial_density: float = 1.0,
  warmup_steps: int | None = None,
  beta: float = 1.0,
  final_beta: float = 20.0,
) -> optax.GradientTransformationExtraArgs:
  """Trains through soft top-k masks that sharpen, with sparse forward passes (Spartan).

  m = sigmoid(beta (|w| - t)), with t such that sum m = k;
  e = m w where |w| is among the k largest, else 0;  dL/dw := d(m(w) w)/dw^T dL/de

  m is the solution of max_m sum m |w| + H(m) / beta under sum m = k, an optimal
  transport with entropy regularization. The paper finds t by Sinkhorn's iteration, this
  function its fixed point by Newton's method. Gradients pass unchanged through the hard
  top-k (dual averaging) and exactly through the soft one, so masked weights near the
  threshold are explored. As beta grows, m approaches the hard mask.

  The density falls and beta grows linearly from start_step on. After end_step the masks
  m are fixed, and only live weights are trained. The loss must use
  `sj.effective(params, opt_state)` as its weights. Params stay dense.

  Args:
    inner: any optax optimizer.
    density: fraction of weights kept, in (0, 1], in the end; k over the size.
    update_every: steps between updates of the hard masks; the paper uses 1. The soft
      masks follow the weights at every step.
    start_step: the step at which density and beta begin to change.
    end_step: the step at which beta reaches its final value and m is fixed; required.
      The paper trains with fixed masks in the last fifth of a run.
    distribution: sets the budget of each layer; None, the paper's choice, lets all
      layers compete, with one t for the network.
    where: which leaves are sparsified; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    seed: seed of the first masks and of random scores.
    initial_density: density at start_step, in (0, 1].
    warmup_steps: steps in which the density falls; None for a quarter of the steps from
      start_step to end_step, as in the paper.
    beta: sharpness at start_step, in units of 1 / |w|; above 0.
    final_beta: sharpness at end_step; the authors' scripts use 10 for ResNet-50 and 20
      for ViT-B/16.

  Returns:
    An optax transformation; see `sparsify_forward`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected.

  References:
    Tai, Tian & Lim 2022, "Spartan: differentiable sparsity via regularized
    transportation"; the schedules and the default budgets of the authors' program.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.spartan(optax.sgd(0.1, momentum=0.9), density=0.25, end_step=1000)
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> int(sj.masks(state)["kernel"].sum())
    64
  """
  # Validate the schedules of density and sharpness.
  if end_step is None:
    raise ValueError("end_step must be given: beta is final there; got None.")
  check_schedule(update_every, start_step, end_step)
  last = check_some_update(update_every, start_step, end_step)
  check_density(density)
  check_density(initial_density, "initial_density")
  if warmup_steps is None:
    warmup_steps = max(1, (end_step - start_step) // 4)
  check_integer("warmup_steps", warmup_steps, 1)
  # The density must be final at the last mask update, which may be before end_step.
  warmup_steps = min(warmup_steps, last)
  rule = "be above 0"
  for name, value in (("beta", beta), ("final_beta", final_beta)):
    check_number(name, value, rule, lambda v: 0 < v < np.inf)

  def progress(step, steps):
    return jnp.clip((jnp.asarray(step, jnp.float32) - start_step) / steps, 0.0, 1.0)

  def ramp(step):
    change = progress(step, warmup_steps)
    return initial_density + (density - initial_density) * change

  density_at = EndingSchedule(ramp, start_step + warmup_steps, density)

  def beta_at(step):
    return beta + (final_beta - beta) * progress(step, end_step - start_step)

  def pools(axes, *trees):
    """Yields the leaves that compete: each by itself; all if distribution is None."""
    columns = [jax.tree.leaves(tree) for tree in trees]
    if distribution is None:
      yield None, columns
      return
    for layer, *arrays in zip(axes, *columns, strict=True):
      yield layer, [[x] for x in arrays]

  # The soft masks of the weights after a step; from end_step on, the old ones.
  def soften(weights, state, axes):
    soft = []
    for layer, (kernels, masks) in pools(axes, weights, state.masks):
      soft += _soft_top_k(kernels, masks, beta_at(state.count), layer)
    if state.soft_masks is not None:
      old = jax.tree.leaves(state.soft_masks)
      fixed = state.count > end_step
      soft = [jnp.where(fixed, o, s) for o, s in zip(old, soft, strict=True)]
    return jax.tree.structure(weights).unflatten(soft)

  # Takes dL/de back through e = m(w) w; once m is fixed, through e = m w alone.
  def through(grads, params, state):
    chosen = [m is not None for m in align(params, state.masks)]
    axes = layer_axes(params, chosen, stacked, input_axes)
    trees = choose(params, chosen), choose(grads, chosen)
    sharpness, fixed = beta_at(state.count), state.count >= end_step
    pulled = []
    for layer, (kernels, given, soft, masks) in pools(
      axes, *trees, state.soft_masks, state.masks
    ):
      dense = _pull_back(kernels, given, soft, sharpness, layer)
      for d, g, s, m in zip(dense, given, soft, masks, strict=True):
        alone = jnp.where(m, s.astype(g.dtype) * g, jnp.zeros_like(g))
        pulled.append(jnp.where(fixed, alone, d))
    new = iter(pulled)
    leaves, treedef = jax.tree.flatten(grads)
    return treedef.unflatten(
      next(new) if c else g for c, g in zip(chosen, leaves, strict=True)
    )

  return sparsify_forward(
    inner,
    reselect(magnitude, density_at, distribution),
    None,
    update_every=update_every,
    start_step=start_step,
    end_step=end_step,
    distribution=uniform if distribution is None else distribution,
    where=where,
    stacked=stacked,
    input_axes=input_axes,
    seed=seed,
    gradients=through,
    soften=soften,
  )


def _total(arrays: Sequence[jax.Array], layer: LayerAxes | None) -> jax.Array:
  """Sums over all weights that compete: of each layer of a leaf, or of all leaves."""
  if layer is None:
    return sum((jnp.sum(x) for x in arrays), jnp.float32(0))
  [x] = arrays
  axes = tuple(i for i in range(x.ndim) if i not in layer.stacked)
  return jnp.sum(x, axis=axes, keepdims=True)


def _soft_top_k(
  weights: Sequence[jax.Array],
  masks: Sequence[jax.Array],
  beta: jax.Array,
  layer: LayerAxes | None,
) -> list[jax.Array]:
  """Computes sigmoid(beta |w| - t), with t such that it sums to the live weights.

  Args:
    weights: the leaves that compete.
    masks: their hard masks, whose sum is k.
    beta: the sharpness, a scalar.
    layer: the axes of the only leaf, whose layers compete within themselves; None if
      all leaves compete.

  Returns:
    Soft masks in the dtypes of the weights; 1 where all weights are live.
  """
  z = [beta * jnp.abs(w.astype(jnp.float32)) for w in weights]
  k = _total([m.astype(jnp.float32) for m in masks], layer)
  size = _total([jnp.ones_like(x) for x in z], layer)
  whole = k >= size
  k = jnp.minimum(k, size - 0.5)

  # The sum at t, and minus its derivative.
  def sums(t):
    soft = [jax.nn.sigmoid(x - t) for x in z]
    return _total(soft, layer), _total([s * (1 - s) for s in soft], layer)

  def unsettled(carry):
    step, _, sum_, *_ = carry
    return (step < _MOST_STEPS) & jnp.any(jnp.abs(sum_ - k) > _TOLERANCE * k)

  # One step of Newton's method, or of bisection if that leaves the bracket.
  def improve(carry):
    step, t, sum_, slope, low, high = carry
    low, high = jnp.where(sum_ > k, t, low), jnp.where(sum_ > k, high, t)
    newton = t + (sum_ - k) / jnp.where(slope > 0, slope, 1)
    inside = (slope > 0) & (newton > low) & (newton < high)
    t = jnp.where(inside, newton, (low + high) / 2)
    return (step + 1, t, *sums(t), low, high)

  # If all |w| were equal, t would be z - logit(k / size), so it lies between the values
  # for the smallest and the largest. The first guess is that for the mean, which is
  # good if beta is low, or the threshold of the hard mask, which is good if it is high:
  # the larger one, since both are too low if few weights are live.
  logit = jnp.log(k) - jnp.log(size - k)
  largest = _extreme(jnp.max, z, layer)
  low, high = _extreme(jnp.min, z, layer) - logit - 1, largest - logit + 1
  live = [jnp.where(m, x, jnp.inf) for m, x in zip(masks, z, strict=True)]
  t = jnp.maximum(_extreme(jnp.min, live, layer), _total(z, layer) / size - logit)
  t = jnp.clip(t, low, high)
  _, t, *_ = lax.while_loop(unsettled, improve, (0, t, *sums(t), low, high))
  soft = [jnp.where(whole, 1, jax.nn.sigmoid(x - t)) for x in z]
  return [s.astype(w.dtype) for s, w in zip(soft, weights, strict=True)]


def _extreme(reduce: Any, arrays: Sequence[jax.Array], layer: LayerAxes | None):
  """Computes the minimum or maximum over all weights that compete."""
  if layer is None:
    return reduce(jnp.stack([reduce(x) for x in arrays]))
  [x] = arrays
  axes = tuple(i for i in range(x.ndim) if i not in layer.stacked)
  return reduce(x, axis=axes, keepdims=True)


def _pull_back(
  weights: Sequence[jax.Array],
  grads: Sequence[jax.Array],
  soft: Sequence[jax.Array],
  beta: jax.Array,
  layer: LayerAxes | None,
) -> list[jax.Array]:
  """Computes dL/dw from dL/de, where e = m(w) w and m is the soft top-k of |w|.

  dL/dw = m g + sign(w) beta v (u - sum u v / sum v),  u = w g,  v = m (1 - m)

  Args:
    weights: the leaves that compete.
    grads: g, dL/de of each.
    soft: m of each.
    beta: the sharpness, a scalar.
    layer: as in `_soft_top_k`.

  Returns:
    The gradients, in the dtypes of `grads`.
  """
  wide = lambda arrays: [x.astype(jnp.float32) for x in arrays]
  w, g, m = wide(weights), wide(grads), wide(soft)
  v = [x * (1 - x) for x in m]
  u = [a * b for a, b in zip(w, g, strict=True)]
  slopes = _total(v, layer)
  mean = _total([a * b for a, b in zip(u, v, strict=True)], layer)
  mean = mean / jnp.where(slopes > 0, slopes, 1)
  out = [
    m_ * g_ + jnp.sign(w_) * beta * v_ * (u_ - mean)
    for w_, g_, m_, u_, v_ in zip(w, g, m, u, v, strict=True)
  ]
  return [x.astype(g_.dtype) for x, g_ in zip(out, grads, strict=True)]
