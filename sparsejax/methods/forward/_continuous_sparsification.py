"""Continuous Sparsification (Savarese et al. 2020)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax.core import (
  Distribution,
  InputAxes,
  MaskTransform,
  PyTree,
  ScoreInputs,
  Stacked,
  Topology,
  Where,
  align,
  boxed_like,
  check_number,
  check_optimizer,
  choose,
  live_in,
  widened,
  without_statics,
)
from sparsejax.distributions import EndingSchedule, check_density, uniform
from sparsejax.transforms import (
  check_schedule,
  check_update,
  map_masked,
  reselect,
  sparsify_forward,
)


class GateState(NamedTuple):
  """The scores of the gates and the state of their optimizer.

  Attributes:
    scores: tree like the sparsified leaves, in their dtypes.
    inner_state: the state of the optimizer of the scores.
  """

  scores: PyTree
  inner_state: PyTree


def continuous_sparsification(
  inner: optax.GradientTransformation,
  density: Any,
  *,
  update_every: int | None = 1,
  start_step: int = 0,
  end_step: int | None = None,
  distribution: Distribution | None = None,
  where: Where = None,
  stacked: Stacked = False,
  input_axes: InputAxes = None,
  seed: Any = 0,
  initial_score: float = 0.0,
  penalty: float = 1e-8,
  final_beta: float = 200.0,
  score_optimizer: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Learns a gate per weight that sharpens to a mask (Continuous Sparsification).

  e = sigmoid(beta s) w, minimizing L + penalty sum sigmoid(beta s) over w and s;
  beta = final_beta^((t - start) / (end - start));  then e = w where s is among the
  `density` best, else 0

  The scores s are part of the state. Up to end_step all weights are live and all gates
  are open in part; sharper gates take sides, which approximates L0 regularization. At
  end_step the gates become a mask, which is final; the rest of the training fits the
  weights to it. The loss must use `sj.effective(params, opt_state)` as its weights.

  In the paper the mask is s > 0, and the density follows from `initial_score` and
  `penalty`: `density=None`. With a density the best scores of the whole network are
  kept, whatever their sign, which gives exact counts. The authors' program also divides
  the gates by their first value, so that training starts with e = w.

  Args:
    inner: any optax optimizer; it updates the weights.
    density: fraction of weights kept, in (0, 1]; None keeps those with s > 0.
    update_every: steps between mask updates; the gates harden at the last of them.
    start_step: the step at which beta begins to grow from 1.
    end_step: the step at which beta reaches `final_beta` and the gates harden;
      required.
    distribution: sets the budget of each layer; None lets all layers compete.
    where: which leaves are sparsified; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    seed: accepted for the common signature; nothing is drawn.
    initial_score: s of every weight at the start. Lower values give sparser networks;
      the authors suggest -0.1 for a high sparsity.
    penalty: strength of the L1 penalty on the gates, at least 0; 1e-8 is the authors'
      default.
    final_beta: beta at end_step, at least 1; 200 is the authors' default.
    score_optimizer: the optimizer of s; None for another instance of `inner`. The
      authors use that of the weights without weight decay.

  Returns:
    An optax transformation; see `sparsify_forward`. Its `transform_state` holds the
    scores.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected.

  References:
    Savarese, Silva & Maire 2020, "Winning the lottery with continuous sparsification",
    and the authors' program.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.continuous_sparsification(optax.sgd(0.1), density=0.25, end_step=1000)
    >>> params = {"kernel": jnp.array([[4.0, -2.0]])}
    >>> sj.effective(params, tx.init(params))  # every gate is sigmoid(0) = 1 / 2
    {'kernel': Array([[ 2., -1.]], dtype=float32)}
  """
  # Validate, and find the mask update at which the gates harden.
  if end_step is None:
    raise ValueError("end_step must be given: the gates harden there; got None.")
  check_schedule(update_every, start_step, end_step)
  if update_every is None:
    raise ValueError("update_every must be an integer of at least 1, got None.")
  hard_step = start_step + (end_step - start_step) // update_every * update_every
  if hard_step <= start_step:
    raise ValueError(
      f"end_step must be at least start_step + update_every = "
      f"{start_step + update_every}, got {end_step}: the gates would never harden."
    )
  check_optimizer("inner", inner)
  if density is not None:
    check_density(density)
  check_number("initial_score", initial_score, "be finite", np.isfinite)
  check_number("penalty", penalty, "be at least 0", lambda v: 0 <= v < np.inf)
  check_number("final_beta", final_beta, "be at least 1", lambda v: 1 <= v < np.inf)
  if score_optimizer is not None:
    check_optimizer("score_optimizer", score_optimizer)
  score_optimizer = optax.with_extra_args_support(score_optimizer or inner)

  def beta_at(step):
    t = (jnp.asarray(step, jnp.float32) - start_step) / (hard_step - start_step)
    return final_beta ** jnp.clip(t, 0.0, 1.0)

  def gate(scores, step):
    scores = widened(scores)
    return jax.nn.sigmoid(beta_at(step).astype(scores.dtype) * scores)

  # The masks: everything, and from hard_step on the best scores, or the positive ones.
  def density_at(step):
    return jnp.where(step >= hard_step, 1.0 if density is None else density, 1.0)

  schedule = EndingSchedule(density_at, hard_step, 1.0 if density is None else density)
  best = reselect(lambda inputs: inputs.params, schedule, distribution)

  def init(params):
    scores = jax.tree.map(lambda w: jnp.full_like(w, initial_score), params)
    return GateState(scores, score_optimizer.init(scores))

  def update(inputs: ScoreInputs, topology: Topology, state: GateState):
    scored = inputs._replace(params=state.scores)
    topology, _ = best.update(scored, topology, ())
    if density is None:
      soft = inputs.step < hard_step
      masks = jax.tree.map(lambda m, s: m & (soft | (s > 0)), topology.masks, state[0])
      budgets = jax.tree.map(
        lambda m, b: live_in(m, b).astype(b.dtype),
        masks,
        boxed_like(topology.budgets, masks),
      )
      topology = topology._replace(masks=masks, budgets=budgets)
    return topology, state

  def soften(weights, state, axes):
    hard = state.count >= hard_step

    def soft(weight, scores):
      value = gate(scores, state.count)
      return jnp.where(hard, jnp.ones_like(value), value).astype(weight.dtype)

    return jax.tree.map(soft, weights, boxed_like(state.transform_state[0], weights))

  def of_weights(grads, params, state):
    def change(g, w, soft, mask):
      return jnp.where(mask, soft.astype(g.dtype) * g, jnp.zeros_like(g))

    return map_masked(change, grads, params, state.soft_masks, state.masks)

  forward = sparsify_forward(
    inner,
    MaskTransform(init, update),
    None,
    update_every=update_every,
    start_step=start_step,
    end_step=end_step,
    distribution=uniform if distribution is None else distribution,
    where=where,
    stacked=stacked,
    input_axes=input_axes,
    seed=seed,
    gradients=of_weights,
    soften=soften,
  )

  # Updates the scores, then the weights, both with the gradients of this step.
  def update_fn(updates, state, params=None, *, update_masks=None, **extra_args):
    params = without_statics(params, updates)
    check_update(updates, state, params, update_masks)
    chosen = [m is not None for m in align(params, state.masks)]
    scores, inner_state = state.transform_state

    def of_score(s, w, g):
      m = gate(s, state.count)
      beta, w, g = (x.astype(m.dtype) for x in (beta_at(state.count), w, g))
      pull = w * g + penalty
      return (beta * m * (1 - m) * pull).astype(s.dtype)

    leaves, treedef = jax.tree.flatten(scores)
    trees = choose(params, chosen), choose(updates, chosen)
    columns = [jax.tree.leaves(tree) for tree in trees]
    grads = treedef.unflatten(map(of_score, leaves, *columns))
    steps, inner_state = score_optimizer.update(
      grads, inner_state, scores, **extra_args
    )
    moved = optax.apply_updates(scores, steps)
    final = state.count >= hard_step
    moved = jax.tree.map(lambda new, s: jnp.where(final, s, new), moved, scores)
    state = state._replace(transform_state=GateState(moved, inner_state))
    return forward.update(
      updates, state, params, update_masks=update_masks, **extra_args
    )

  return optax.GradientTransformationExtraArgs(forward.init, update_fn)
