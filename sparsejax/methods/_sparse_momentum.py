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
  """Drops by magnitude, moves budgets by mean momentum, regrows by momentum.

  drop(|w|, p) > redistribute(|m|) > grow(|m|), with p = `near_dense(drop_fraction)`

  The inner optimizer receives dense gradients, those of masked weights included, and
  its momentum ranks the masked weights for growth. The momentum is never reset. Budgets
  are integers whose sum never changes (the reference rounds up and corrects later).

  The other modes of the authors' implementation: pruning "SET" is `drop_scope="sign"`,
  "global_magnitude" is `drop_scope="global"`; growth "random" is
  `grow_score=sj.random`, "momentum_neuron" is `per_neuron=True`; redistribution
  "magnitude" is `redistribute_by=sj.magnitude`, "nonzero" is
  `redistribute_by=sj.nonzeros`, and "none" is `redistribute_by=None`, with which each
  layer keeps its budget.

  Args:
    inner: any optax optimizer; under Adam and its variants the momentum is
      m / (sqrt(v) + 1e-8).
    density: fraction of weights kept, in (0, 1].
    update_every: steps between mask updates; the paper updates once per epoch.
    start_step: steps before the schedule of mask updates begins.
    end_step: no mask update after this step; None for no limit.
    distribution: sets the budget of each layer at the start.
    where: which leaves are sparsified; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    seed: seed of the first masks and of random scores.
    drop_fraction: fraction of each layer's budget dropped at a mask update: a float or
      a schedule. The paper decays it by a cosine:
      `optax.cosine_decay_schedule(0.5, steps)`.
    momentum_decay: coefficient of the running average of gradients that is kept unless
      one state of `inner` has the momentum of all sparsified leaves.
    drop_score: the score of live weights; the lowest are dropped.
    drop_scope: see `drop`.
    redistribute_by: see `redistribute`; with None each layer keeps its budget.
    grow_score: the score of masked weights; the highest are grown.
    per_neuron: whether growth is divided among a layer's neurons first; see
      `grow_per_neuron`.
    structure: which patterns of live weights are allowed; see `sparsify`.

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
  """Returns sparse momentum's rule for `drop`: nearly dense layers drop less.

  p_l = min(dead_l / size_l, p) if dead_l / size_l < 0.2 and share_l > 1 / layers,
  else p

  dead_l is the number of masked weights of layer l, and share_l its mean momentum,
  normalized over the layers. Without this rule a nearly dense layer whose budget is
  about to rise would drop more weights than it has masked weights to replace them.

  Args:
    drop_fraction: p, a float, a schedule or a rule, as in `drop`.

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
    # share_l > 1 / layers, compared in integers, without rounding errors.
    with jax.enable_x64(True):
      shares = quantize(mean_scores(momentum(inputs), inputs.masks, budgets))
      growing = shares * jnp.int64(len(sizes)) > jnp.sum(shares)
    dead_share = dead.astype(jnp.float32) / sizes.astype(jnp.float32)
    p = jnp.broadcast_to(
      jnp.asarray(rule(inputs, topology), jnp.float32), dead_share.shape
    )
    # dead_l / size_l < 0.2, without a division.
    full = growing & (5 * dead.astype(jnp.float32) < sizes.astype(jnp.float32))
    return jnp.where(full, jnp.minimum(dead_share, p), p)

  return fractions
