"""Sparse momentum (Dettmers & Zettlemoyer 2019)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.core import (
  Distribution,
  InputAxes,
  Score,
  ScoreInputs,
  Stacked,
  Topology,
  Where,
  check_flag,
  layer_sizes,
  live_counts,
  mean_scores,
  quantize,
)
from sparsejax.core.structures import Structure, density_of
from sparsejax.distributions import uniform
from sparsejax.scores import magnitude, momentum
from sparsejax.transforms import (
  Fraction,
  Rule,
  chain,
  drop,
  fraction_rule,
  grow,
  grow_per_neuron,
  redistribute,
  sparsify,
)

Array = jax.Array


def sparse_momentum(
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
  drop_fraction: Fraction = 0.5,
  momentum_decay: float = 0.9,
  drop_score: Score = magnitude,
  drop_scope: str = "layer",
  redistribute_by: Score | Rule | None = momentum,
  grow_score: Score = momentum,
  per_neuron: bool = False,
  structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Prunes by magnitude, moves budget by mean momentum, regrows by momentum.

  drop(|w|, p) > redistribute(|m|) > grow(|m|), with p = `near_dense(drop_fraction)`

  Gradients are dense: the inner optimizer sees those of dead weights too, and its
  momentum says which of them to wake. It is never reset. Budgets are integers whose
  sum never changes (the reference rounds up and corrects later).

  The authors' other modes, in their words: to prune by SET is `drop_scope="sign"`, by
  global_magnitude `drop_scope="global"`; growth random is `grow_score=sj.random`,
  momentum_neuron `per_neuron=True`; redistribution magnitude is
  `redistribute_by=sj.magnitude`, nonzero `redistribute_by=sj.nonzeros`, and none
  `redistribute_by=None`, with which each layer keeps its budget.

  Args:
    inner: any optax optimizer; under Adam and its relatives the momentum is
      m / (sqrt(v) + 1e-8).
    density: fraction of weights live, in (0, 1].
    update_every: steps between mask updates (the paper: once an epoch).
    start_step: see `sparsify`.
    end_step: see `sparsify`.
    distribution: of the weights live at the start.
    where: see `sparsify`.
    stacked: see `sparsify`.
    input_axes: see `sparsify`.
    seed: see `sparsify`.
    drop_fraction: share of each layer dropped at a mask update: a float or a
      schedule. The paper decays it by a cosine:
      `optax.cosine_decay_schedule(0.5, steps)`.
    momentum_decay: of the running average kept where `inner` holds no momentum.
    drop_score: what a live weight is worth.
    drop_scope: see `drop`.
    redistribute_by: see `redistribute`; None leaves budgets with their layers.
    grow_score: what a dead weight would be worth.
    per_neuron: whether growth is shared out among a layer's neurons first; see
      `grow_per_neuron`.
    structure: see `sparsify`.

  Returns:
    An optax transformation; see `sparsify`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected; the structure
      does not fit.

  References:
    Dettmers & Zettlemoyer 2019, "Sparse networks from scratch: faster training
    without losing performance", arXiv 1907.04840, algorithm 1.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.sparse_momentum(optax.sgd(0.1, momentum=0.9), density=0.25)
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> int(sj.masks(state)["kernel"].sum())
    16
  """
  check_flag("per_neuron", per_neuron)
  return sparsify(
    inner,
    chain(
      drop(drop_score, near_dense(drop_fraction), drop_scope),
      *(() if redistribute_by is None else (redistribute(redistribute_by),)),
      grow_per_neuron(grow_score) if per_neuron else grow(grow_score),
    ),
    density_of(density, structure),
    update_every=update_every,
    start_step=start_step,
    end_step=end_step,
    distribution=distribution,
    where=where,
    stacked=stacked,
    input_axes=input_axes,
    seed=seed,
    momentum_decay=momentum_decay,
    structure=structure,
  )


def near_dense(drop_fraction: Fraction):
  """The drop fraction of sparse momentum: nearly dense layers drop less.

  p_l = min(dead_l / size_l, p) if dead_l / size_l < 0.2 and share_l > 1 / layers,
  else p

  A layer that is nearly full and still asked to grow would otherwise lose weights
  that nothing can replace.

  Args:
    drop_fraction: p, a float or a schedule.

  Returns:
    A rule `(inputs, topology) -> (layers,)` for `drop`.

  Raises:
    ValueError: a static fraction is outside [0, 1).

  References:
    The authors' implementation (`sparse_learning`), not in the paper's algorithm.

  Example:
    >>> import sparsejax as sj
    >>> transform = sj.drop(sj.magnitude, sj.near_dense(0.5))
  """
  rule = fraction_rule(drop_fraction, "drop_fraction")

  def fractions(inputs: ScoreInputs, topology: Topology) -> Array:
    masks, budgets = topology.masks, topology.budgets
    sizes = jnp.asarray(layer_sizes(masks, budgets), jnp.int32)
    dead = sizes - live_counts(masks, budgets)
    with jax.enable_x64(True):
      shares = quantize(mean_scores(momentum(inputs), inputs.masks, budgets))
      growing = shares * jnp.int64(len(sizes)) > jnp.sum(shares)
    dead_share = dead.astype(jnp.float32) / sizes.astype(jnp.float32)
    p = jnp.broadcast_to(
      jnp.asarray(rule(inputs, topology), jnp.float32), dead_share.shape
    )
    full = growing & (5 * dead.astype(jnp.float32) < sizes.astype(jnp.float32))
    return jnp.where(full, jnp.minimum(dead_share, p), p)

  return fractions
