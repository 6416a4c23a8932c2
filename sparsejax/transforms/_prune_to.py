"""Prune to a density that a schedule gives."""

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
  check_density,
  check_distribution,
  layer_budgets,
  total_budget,
  uniform,
)


def prune_to(
  score: Score, density, distribution: Distribution | None = None
) -> MaskTransform:
  """Keeps the best weights at the density of the moment.

  masks_l = the budget_l best of layer l, budget = distribution(shapes, density(step))

  Live weights come before dead ones, so nothing returns while the density falls.

  Args:
    score: what a weight is worth.
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

  def update(inputs: ScoreInputs, topology: Topology, state: PyTree):
    masks, budgets, finite, structure, axes = topology
    axes = plain_axes(masks, budgets) if axes is None else axes
    finite = finite & scores_are_finite(scores := score(inputs), masks)
    scores = jax.tree.map(
      lambda s, m: jnp.where(m, s, jnp.asarray(-jnp.inf, s.dtype)), scores, masks
    )
    everything = jax.tree.map(jnp.ones_like, masks)
    target = density(inputs.step) if callable(density) else density
    if callable(density):
      target = jnp.asarray(target)
      if target.shape != () or not jnp.issubdtype(target.dtype, jnp.number):
        raise ValueError(
          f"density must give a single number, got {target.dtype}{list(target.shape)}."
        )
      target = target.astype(jnp.float32)
      # Of NaN no budgets can be made: the mask update is skipped.
      finite = finite & ~jnp.isnan(target)
      target = jnp.where(jnp.isnan(target), jnp.float32(1), target)
      smallest = len(layer_sizes(masks, budgets)) / sum(layer_sizes(masks, budgets))
      target = jnp.clip(target, np.float32(smallest), 1.0)
    shapes = layer_shapes(axes)
    if distribution is None:
      total = total_budget(shapes, target)
      budget = split_layers(scores, total, everything, budgets)
    else:
      budget = layer_budgets(distribution, shapes, target)
    budget = jnp.asarray(budget).astype(to_vector(budgets).dtype)
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
  """Makes every weight live and prunes to a density: dead weights may come back.

  masks_l = the budget_l best of layer l, budget = distribution(shapes, density(step))

  For methods whose dead weights keep their values, such as `straight_through`; where
  they are zero, `prune_to` does the same.

  Args:
    score: what a weight is worth, dead ones included.
    density: fraction of weights kept, in (0, 1]: a float or a schedule `step -> float`.
    distribution: see `prune_to`.

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
