"""Sparse evolutionary training (SET, Mocanu et al. 2018)."""

from typing import Any

import optax

from sparsejax.core import Distribution, InputAxes, Stacked, Where
from sparsejax.core.structures import Structure, density_of
from sparsejax.distributions import uniform
from sparsejax.scores import magnitude, random
from sparsejax.transforms import Fraction, chain, drop, fraction_rule, grow, sparsify


def sparse_evolution(
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
  structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Drops each layer's smallest weights and regrows at random (SET).

  drop(|w|, drop_fraction) > grow(random)

  The inner optimizer receives masked gradients: those of masked weights are zero.
  SET's own rule drops the smallest positive and the largest negative weights; that
  equals dropping the smallest magnitudes where a layer's weights are balanced in sign.
  The paper's first masks are Erdős–Rényi: `distribution=sj.erdos_renyi`.

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
      a schedule.
    structure: which patterns of live weights are allowed; see `sparsify`.

  Returns:
    An optax transformation; see `sparsify`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected; the structure
      does not fit.

  References:
    Mocanu et al. 2018, "Scalable training of artificial neural networks with
    adaptive sparse connectivity inspired by network science", algorithm 2.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.sparse_evolution(optax.sgd(0.1, momentum=0.9), density=0.25)
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> int(sj.masks(state)["kernel"].sum())
    16
  """
  return sparsify(
    inner,
    chain(drop(magnitude, fraction_rule(drop_fraction, "drop_fraction")), grow(random)),
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
