"""CHTs: Cannistraci-Hebb training with the soft rule (Zhang et al. 2025)."""

from typing import Any

import jax.numpy as jnp
import optax

from sparsejax.core import Distribution, InputAxes, Score, Stacked, Where
from sparsejax.core.structures import Structure, density_of
from sparsejax.distributions import uniform
from sparsejax.scores import magnitude, sampled
from sparsejax.transforms import (
  Fraction,
  chain,
  drop,
  fraction_rule,
  grow_by_paths,
  sparsify,
)


def chts(
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
  drop_score: Score = magnitude,
  predictor: str = "ch2",
  soft: bool = True,
  structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Drops a random sample of small weights and regrows along paths of live ones (CHTs).

  drop(sampled(|w|, exponent), drop_fraction) > grow_by_paths(predictor),
  exponent = 1 + 2 step / end_step

  Growth reads the masks alone: no step needs gradients of masked weights. See
  `grow_by_paths` for the link predictors and their cost. What stays is drawn in
  proportion to |w|^exponent, which rises from 1 to 3 as weights become more reliable;
  without an `end_step` it stays 1. With `soft=False` (CHT) the smallest weights are
  dropped and the best-connected ones are grown.

  The authors start from other network models, also drop weights at units without
  inputs or outputs, and use relative importance, |w_ij| / sum_i |w_ij| + |w_ij| /
  sum_j |w_ij|, as an alternative `drop_score`. The inner optimizer receives masked
  gradients.

  Args:
    inner: any optax optimizer.
    density: fraction of weights kept, in (0, 1].
    update_every: steps between mask updates.
    start_step: steps before the schedule of mask updates begins.
    end_step: no mask update after this step; None for no limit.
    distribution: sets the budget of each layer at the start.
    where: which leaves are sparsified; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    seed: seed of the first masks and of random scores.
    drop_fraction: fraction of each layer's budget dropped at a mask update: a float or
      a schedule. The authors' translation script decays it by a cosine.
    drop_score: the score of live weights, not negative.
    predictor: "ch2" or "ch3"; see `grow_by_paths`.
    soft: whether weights are dropped and grown by sampling.
    structure: which patterns of live weights are allowed; see `sparsify`.

  Returns:
    An optax transformation; see `sparsify`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected; the structure
      does not fit; in `init`, the inputs and outputs of a kernel are not known.

  References:
    Zhang et al. 2025, "Brain network science modelling of sparse neural networks
    enables Transformers and LLMs to perform as fully connected", section 3.1.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.chts(optax.sgd(0.1, momentum=0.9), density=0.25)
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> int(sj.masks(state)["kernel"].sum())
    16
  """
  grow = grow_by_paths(predictor, soft)
  fraction = fraction_rule(drop_fraction, "drop_fraction")

  def exponent(step):
    if not end_step:
      return jnp.float32(1)
    done = jnp.asarray(step).astype(jnp.float32) / end_step
    return 1 + 2 * jnp.clip(done, 0, 1)

  score = sampled(drop_score, exponent) if soft else drop_score
  return sparsify(
    inner,
    chain(drop(score, fraction), grow),
    density_of(density, structure),
    update_every=update_every,
    start_step=start_step,
    end_step=end_step,
    distribution=distribution,
    where=where,
    stacked=stacked,
    input_axes=input_axes,
    seed=seed,
    mask_gradients=True,
    structure=structure,
  )
