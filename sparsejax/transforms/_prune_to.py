"""Pruning to a density given by a schedule."""

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core import (
  Distribution,
  MaskTransform,
  PyTree,
  Score,
  ScoreInputs,
  Topology,
  check_callable,
  check_score,
  from_vector,
  layer_shapes,
  layer_sizes,
  plain_axes,
  scores_are_finite,
  split_layers,
  to_vector,
  top_k_masks,
)
from sparsejax.core.structures import check_fixed
from sparsejax.distributions import (
  EndingSchedule,
  check_density,
  check_distribution,
  layer_budgets,
  total_budget,
  uniform,
)


def prune_to(
  score: Score, density, distribution: Distribution | None = None
) -> MaskTransform:
  """Keeps the best weights at the current density of a schedule.

  masks_l = the budget_l best of layer l, budget = distribution(shapes, density(step))

  All live weights rank above all masked ones, so no masked weight becomes live while
  the density falls.

  Args:
    score: the score of each weight; the highest are kept.
    density: fraction of weights kept, in (0, 1]: a float or a schedule `step -> float`.
      A schedule's value is clipped to at least one weight per layer and at most 1; NaN
      skips the mask update.
    distribution: sets the budget of each layer; None selects over the whole network at
      once (the scores must then share one dtype).

  Returns:
    A mask transform.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: a static density is outside (0, 1].

  Example:
    >>> import sparsejax as sj
    >>> one_shot = sj.prune_to(sj.magnitude, 0.1, sj.erk)
  """
  check_score("score", score)
  check_distribution(distribution, none=True)
  if callable(density):
    check_callable("density", density, "a number or a function of the step", 1)
  else:
    check_density(density)

  def at_the_end(count, target, step):
    """Returns the count at a target, and at the end that of the density as given."""
    ends = isinstance(density, EndingSchedule)
    if not ends or isinstance(density.final, jax.Array):
      return count(target)
    changing, last = count(target), count(density.final)
    with jax.enable_x64(True):  # the count of a whole network is an int64
      last = jnp.asarray(last).astype(changing.dtype)
      return jnp.where(step >= density.last_step, last, changing)

  def update(inputs: ScoreInputs, topology: Topology, state: PyTree):
    masks, budgets, finite, structure, axes = topology
    axes = plain_axes(masks, budgets) if axes is None else axes
    # Score the live weights; masked ones get -inf and rank last, even after live ones
    # whose score is -inf.
    finite = finite & scores_are_finite(scores := score(inputs), masks)
    scores = jax.tree.map(
      lambda s, m: jnp.where(m, jnp.maximum(s, jnp.finfo(s.dtype).min), -jnp.inf),
      scores,
      masks,
    )
    everything = jax.tree.map(jnp.ones_like, masks)
    # The density of this step; that of a user's schedule is validated and clipped.
    target = density(inputs.step) if callable(density) else density
    if callable(density):
      target = jnp.asarray(target)
      if target.shape != () or not jnp.issubdtype(target.dtype, jnp.number):
        raise ValueError(
          "density must return a single number, got "
          f"{target.dtype}{list(target.shape)}."
        )
      target = target.astype(jnp.float32)
      # NaN gives no budgets: mark the mask update as one to skip, go on with 1.
      finite = finite & ~jnp.isnan(target)
      target = jnp.where(jnp.isnan(target), jnp.float32(1), target)
      smallest = len(layer_sizes(masks, budgets)) / sum(layer_sizes(masks, budgets))
      target = jnp.clip(target, np.float32(smallest), 1.0)
    # Budgets at this density: by the distribution, or by comparing all layers.
    shapes = layer_shapes(axes)
    if distribution is None:
      total = at_the_end(lambda d: total_budget(shapes, d), target, inputs.step)
      budget = split_layers(scores, total, everything, budgets)
    else:
      budgets_at = lambda d, f=distribution: layer_budgets(f, shapes, d, axes)
      budget = at_the_end(budgets_at, target, inputs.step)
    budget = jnp.asarray(budget).astype(to_vector(budgets).dtype)
    # Select the best weights of each layer.
    if structure is None:
      budgets = from_vector(budget, budgets)
      masks = top_k_masks(scores, budgets, everything)
    else:
      budgets = from_vector(structure.fit(shapes, budget), budgets)
      masks = structure.select(scores, budgets, everything, axes=axes)
    return Topology(masks, budgets, finite, structure, axes), state

  def fits(structure, shapes):
    check_fixed(density, structure)
    if distribution is None:
      raise ValueError(
        "distribution must be given to prune_to under the structure "
        f"{structure.name}, which selects layer by layer; got None."
      )
    if structure.density is not None and distribution is not uniform:
      raise ValueError(
        f"distribution must be uniform under the structure {structure.name}, which "
        f"fixes every layer's density, got {distribution!r}."
      )
    if structure.ablates:
      raise ValueError(
        f"prune_to must not be used with the structure {structure.name}: neurons are "
        "ablated where weights grow; pass ablation=None."
      )

  return MaskTransform(lambda params: (), update, fits)


def reselect(
  score: Score, density, distribution: Distribution | None = uniform
) -> MaskTransform:
  """Recomputes the masks as the best of all weights, masked ones included.

  masks_l = the budget_l best of layer l, budget = distribution(shapes, density(step))

  For methods whose masked weights keep their values, such as `straight_through`. Where
  masked weights are zero and scores are magnitudes, `prune_to` gives the same masks.

  Args:
    score: the score of each weight, masked ones included; the highest are kept.
    density: fraction of weights kept, in (0, 1]: a float or a schedule `step -> float`.
    distribution: sets the budget of each layer; None selects over the whole network at
      once; see `prune_to`.

  Returns:
    A mask transform.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: a static density is outside (0, 1].

  Example:
    >>> import sparsejax as sj
    >>> largest = sj.reselect(sj.magnitude, 0.1)
  """
  prune = prune_to(score, density, distribution)

  def update(inputs: ScoreInputs, topology: Topology, state: PyTree):
    everything = jax.tree.map(jnp.ones_like, topology.masks)
    return prune.update(inputs, topology._replace(masks=everything), state)

  return MaskTransform(prune.init, update, prune.fits, check=prune.check)
