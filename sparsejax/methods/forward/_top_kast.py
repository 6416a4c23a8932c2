"""Top-KAST (Jayakumar et al. 2020)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax.core import (
  Distribution,
  InputAxes,
  MaskTransform,
  ScoreInputs,
  Stacked,
  Topology,
  Where,
  check_number,
  true_like,
)
from sparsejax.distributions import check_density, uniform
from sparsejax.scores import magnitude
from sparsejax.transforms import map_masked, reselect, sparsify_forward


def top_kast(
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
  backward_density: Any = None,
  exploration: float = 1e-4,
) -> optax.GradientTransformationExtraArgs:
  """Uses the largest weights in the forward pass and trains a larger set (Top-KAST).

  A = the top D, B = the top D + M of each layer by |w|;  e = w on A, else 0;
  dL/dw := dL/de + exploration (w on A, w / D on B without A), and 0 outside of B

  A is the forward set, B the backward set. The loss must use
  `sj.effective(params, opt_state)` as its weights. Only weights in B receive gradients
  and updates. The weights in B but not in A are candidates for A; their decay is
  stronger, so they enter A only if their gradients keep them large. Weights outside of
  B keep their values, whatever the momentum or weight decay of the inner optimizer.
  Params stay dense; see `straight_through`.

  Args:
    inner: any optax optimizer without weight decay; `exploration` replaces it.
    density: fraction of weights kept, in (0, 1], in the forward set: D.
    update_every: steps between mask updates; in the paper 100 works as well as 1.
    start_step: steps before the schedule of mask updates begins.
    end_step: no mask update after this step; None for no limit.
    distribution: sets the budget of each layer, for both sets.
    where: which leaves are sparsified; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    seed: seed of the first masks and of random scores.
    backward_density: fraction of weights in the backward set, from `density` to 1:
      D + M. None is min(2 D, 1), close to the paper's pairs of D and D + M (0.1 and
      0.2, 0.05 and 0.1).
    exploration: strength of the L2 regularization.

  Returns:
    An optax transformation; see `sparsify_forward`. `sj.masks` returns the masks of A.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected.

  References:
    Jayakumar et al. 2020, "Top-KAST: top-k always sparse training", sections 2.1-2.3.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.top_kast(optax.sgd(0.1, momentum=0.9), density=0.25)
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> int(sj.masks(state)["kernel"].sum())
    16
  """
  # Validate the two densities; traced values are not compared.
  check_density(density)
  traced = isinstance(density, jax.Array) or isinstance(backward_density, jax.Array)
  if backward_density is None:
    backward_density = jnp.minimum(2 * density, 1) if traced else min(2 * density, 1.0)
  check_density(backward_density, "backward_density")
  if not traced and backward_density < density:
    raise ValueError(
      f"backward_density must be at least density = {density}, got {backward_density}."
    )
  check_number("exploration", exploration, "be at least 0", lambda v: 0 <= v < np.inf)

  # What the inner optimizer receives: gradients plus decay in B, zero elsewhere.
  def with_decay(grads, params, state):
    def change(g, w, forward, backward):
      outer = jnp.asarray(exploration / density, w.dtype)
      strength = jnp.where(forward, jnp.asarray(exploration, w.dtype), outer)
      pulled = g + (strength * w).astype(g.dtype)
      return jnp.where(backward | forward, pulled, jnp.zeros_like(g))

    return map_masked(change, grads, params, state.masks, state.transform_state)

  return sparsify_forward(
    inner,
    _two_sets(density, backward_density, distribution),
    density,
    update_every=update_every,
    start_step=start_step,
    end_step=end_step,
    distribution=distribution,
    where=where,
    stacked=stacked,
    input_axes=input_axes,
    seed=seed,
    gradients=with_decay,
    movable=lambda state: jax.tree.map(
      jnp.logical_or, state.transform_state, state.masks
    ),
  )


def _two_sets(forward_density, backward_density, distribution) -> MaskTransform:
  """Returns a transform with the forward set as masks and the backward set as state."""
  forward = reselect(magnitude, forward_density, distribution)
  backward = reselect(magnitude, backward_density, distribution)

  def init(params):
    return jax.tree.map(true_like, params)

  def update(inputs: ScoreInputs, topology: Topology, state):
    live, _ = forward.update(inputs, topology, ())
    wider, _ = backward.update(inputs, topology, ())
    # Rounding may make a layer's backward budget one smaller than its forward budget.
    return live, jax.tree.map(jnp.logical_or, live.masks, wider.masks)

  return MaskTransform(init, update)
