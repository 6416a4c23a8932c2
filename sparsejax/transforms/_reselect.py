"""Reselect: the best weights of the moment, whoever was live before."""

import jax
import jax.numpy as jnp

from sparsejax.core import (
  Distribution,
  MaskTransform,
  PyTree,
  Score,
  ScoreInputs,
  Topology,
)
from sparsejax.distributions import uniform
from sparsejax.transforms._prune_to import prune_to


def reselect(
  score: Score, density, distribution: Distribution | None = uniform
) -> MaskTransform:
  """Makes every weight live and prunes to a density: dead weights may come back.

  masks_l = the budget_l best of layer l, budget = distribution(shapes, density(step))

  For methods whose dead weights keep their values, such as `straight_through`; where
  they are zero, `prune_to` does the same.

  Args:
    score: what a weight is worth, dead ones included.
    density: fraction kept, in (0, 1]: a float or a schedule `step -> float`.
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
