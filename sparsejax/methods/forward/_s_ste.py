"""S-STE, smooth straight-through training (Hu et al. 2024)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.core import (
  Distribution,
  InputAxes,
  LayerAxes,
  MaskTransform,
  PyTree,
  ScoreInputs,
  Stacked,
  Topology,
  Where,
  is_placeholder,
  unboxed,
  widened,
)
from sparsejax.core.structures import Structure, density_of, reshape_keeping
from sparsejax.distributions import uniform
from sparsejax.scores import magnitude
from sparsejax.transforms import map_layers, reselect, sparsify_forward


def s_ste(
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
  structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Trains dense weights through a continuous projection onto N:M patterns (S-STE).

  e = beta S(w),  S(w) = sign(w) relu(|w| - t),  t = the largest masked |w| of a group,
  beta = sum w S(w) / sum S(w)^2 of the first weights of the leaf;  dL/dw := dL/de

  Of every group the largest weights are kept, n of m with `structure=sj.n_m(2, 4)`, and
  shrunk by the largest weight that is not kept. e is a continuous function of w: a
  weight enters or leaves the mask at the value zero, so masks do not oscillate as those
  of `sr_ste`. beta minimizes |w - beta S(w)|^2 when training starts and is fixed from
  then on. Without a structure the group is the whole layer. The loss must use
  `sj.effective(params, opt_state)` as its weights, whose soft masks are
  beta relu(|w| - t) / |w|. Params stay dense; see `straight_through`.

  The paper also samples the gradients of activations to 2:4 (MVUE) and computes in
  FP8, which this function does not.

  Args:
    inner: any optax optimizer.
    density: fraction of weights kept, in (0, 1], or a schedule `step -> density`; None
      for that of the structure.
    update_every: steps between mask updates; the paper uses 1. Thresholds follow the
      weights at every step.
    start_step: steps before the schedule of mask updates begins.
    end_step: no mask update after this step; None for no limit.
    distribution: sets the budget of each layer.
    where: which leaves are sparsified; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`. Each layer has its own
      threshold; beta is one per leaf.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    seed: seed of the first masks and of random scores.
    structure: `sj.n_m(n, m)` with adjacent groups of inputs, or None.

  Returns:
    An optax transformation; see `sparsify_forward`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected; the structure
      does not fit.

  References:
    Hu, Zhu & Chen 2024, "S-STE: continuous pruning function for efficient 2:4 sparse
    pre-training", and the authors' program.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> params = {"kernel": jnp.array([[4.0], [-3.0], [2.0], [1.0]])}
    >>> tx = sj.s_ste(optax.sgd(0.1), density=None, structure=sj.n_m(2, 4))
    >>> effective = sj.effective(params, tx.init(params))["kernel"]
    >>> print(effective.ravel())  # S = 2, -1, 0, 0;  beta = (8 + 3) / (4 + 1)
    [ 4.4 -2.2  0.   0. ]
  """
  density = density_of(density, structure)
  best = reselect(magnitude, density, distribution)

  # The state holds the scale of each leaf, which the first selection sets; `init` runs
  # it on the initial weights as step 0.
  def init(params):
    # Scales are no tree like the params: optax's placeholder must not be in it.
    if is_placeholder(params):
      return jnp.ones((), jnp.float32)
    return unboxed(jax.tree.map(lambda w: jnp.ones((), widened(w).dtype), params))

  def update(inputs: ScoreInputs, topology: Topology, scales):
    topology, _ = best.update(inputs, topology, ())
    axes: Any = topology.axes
    thresholds = _thresholds(axes, inputs.params, topology.masks, structure)
    weights, treedef = jax.tree.leaves(inputs.params), jax.tree.structure(scales)
    new, last = [], jnp.min(thresholds[-1])
    for w, t, before in zip(weights, thresholds, jax.tree.leaves(scales), strict=True):
      size = jnp.abs(widened(_after(last, w)))
      shrunk = jax.nn.relu(size - t)
      sums = jnp.sum(jnp.stack([size * shrunk, shrunk**2]), range(1, 1 + w.ndim))
      last = sums[0]
      fitted = sums[0] / jnp.where(sums[1] > 0, sums[1], 1)
      new.append(jnp.where((inputs.step == 0) & (sums[1] > 0), fitted, before))
    return topology, treedef.unflatten(new)

  def fits(structure, shapes):
    best.fits(structure, shapes)  # pyright: ignore[reportOptionalCall]
    if structure.group is None:
      raise ValueError(
        "structure must be sj.n_m(n, m) with adjacent groups of inputs for s_ste, or "
        f"None, got {structure.name}."
      )

  def soften(weights, state, axes):
    def soft(layer, weight, mask, scale, threshold):
      size = jnp.abs(widened(weight))
      kept = mask & (size > threshold)
      value = scale * (size - threshold) / jnp.where(kept, size, 1)
      return jnp.where(kept, value, 0).astype(weight.dtype)

    scales = jax.tree.leaves(state.transform_state)
    thresholds = _thresholds(axes, weights, state.masks, structure, scales[-1])
    return map_layers(soft, axes, weights, state.masks, scales, thresholds)

  return sparsify_forward(
    inner,
    MaskTransform(init, update, fits),
    None if callable(density) else density,
    update_every=update_every,
    start_step=start_step,
    end_step=end_step,
    distribution=distribution,
    where=where,
    stacked=stacked,
    input_axes=input_axes,
    seed=seed,
    structure=structure,
    soften=soften,
  )


def _thresholds(
  axes: Sequence[LayerAxes],
  weights: PyTree,
  masks: PyTree,
  structure: Structure | None,
  after: jax.Array | None = None,
) -> list[jax.Array]:
  """Computes the thresholds of all leaves, one after another.

  The first is computed after `after`, if it is given; see `_after` for the reason.
  """
  found: list[jax.Array] = []
  both = zip(axes, jax.tree.leaves(weights), jax.tree.leaves(masks), strict=True)
  for layer, weight, mask in both:
    if after is not None:
      weight = _after(after, weight)
    size = jnp.abs(widened(weight))
    found.append(_threshold(layer, size, mask, structure))
    after = jnp.min(found[-1])
  return found


def _after(value: jax.Array, weight: jax.Array) -> jax.Array:
  """Returns the weight unchanged, but computed after `value`, which is not negative.

  This dependence puts the reductions of sharded leaves in an order. XLA's CPU backend
  otherwise starts them in another order on each device, and if there are fewer threads
  than devices they wait for each other forever. A barrier is removed too early to help.
  """
  return jnp.where(value < 0, jnp.zeros_like(weight), weight)


def _threshold(
  layer: LayerAxes, size: jax.Array, mask: jax.Array, structure: Structure | None
) -> jax.Array:
  """Returns the largest masked magnitude of every weight's group, or 0 if none is.

  Args:
    layer: the axes of the leaf.
    size: the magnitudes of its weights.
    mask: its mask.
    structure: the N:M structure, whose groups are taken; None for whole layers.

  Returns:
    An array of the same rank that broadcasts to the leaf's shape.
  """
  dead = jnp.where(mask, jnp.zeros_like(size), size)
  if structure is None:
    axes = [i for i in range(size.ndim) if i not in layer.stacked]
    return jnp.max(dead, axis=axes, keepdims=True)
  # Split the last axis of the inputs into groups of m, and take the largest of each.
  assert structure.group is not None
  m, at = structure.group[1], layer.inputs[-1]
  shape = size.shape
  cut = (*shape[:at], shape[at] // m, m, *shape[at + 1 :])
  origin = [*range(at + 1), None, *range(at + 1, size.ndim)]
  largest = jnp.max(reshape_keeping(dead, cut, origin), axis=at + 1, keepdims=True)
  back = [*range(at + 1), *range(at + 2, size.ndim + 1)]
  return reshape_keeping(jnp.broadcast_to(largest, cut), shape, back)
