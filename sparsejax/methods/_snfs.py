"""SNFS, as in RigL's paper: growth by an average of the dense gradients."""

from typing import Any

import optax

from sparsejax.core import Distribution, InputAxes, Score, Stacked, Where
from sparsejax.core.structures import Structure, density_of
from sparsejax.distributions import uniform
from sparsejax.scores import accumulated_magnitude, magnitude, signed_gradient
from sparsejax.transforms import (
  Fraction,
  Rule,
  accumulate,
  chain,
  drop,
  grow,
  redistribute,
  sparsify,
)


def snfs(
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
  momentum: float = 0.9,
  redistribute_by: Score | Rule | None = accumulated_magnitude,
  structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
  """SNFS: sparse momentum with an average of its own and masked gradients.

  a <- momentum * a + g;  drop(|w|, drop_fraction) > redistribute(|a|) > grow(|a|)

  Gradients are masked for the inner optimizer; the average a is of the dense ones. It
  belongs to the method, so its coefficient does not depend on the inner optimizer's,
  unlike in `sparse_momentum`. That costs one float32 a weight.

  Args:
    inner: any optax optimizer.
    density: fraction of weights live, in (0, 1].
    update_every: steps between mask updates.
    start_step: see `sparsify`.
    end_step: see `sparsify`.
    distribution: of the weights live at the start.
    where: see `sparsify`.
    stacked: see `sparsify`.
    input_axes: see `sparsify`.
    seed: see `sparsify`.
    drop_fraction: share of each layer dropped at a mask update: a float or a schedule.
    momentum: coefficient of the average, in (0, 1].
    redistribute_by: see `redistribute`; None leaves budgets with their layers, as the
      code of RigL's authors does.
    structure: see `sparsify`.

  Returns:
    An optax transformation; see `sparsify`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected; the structure
      does not fit.

  References:
    Dettmers & Zettlemoyer 2019, "Sparse networks from scratch"; as compared with in
    Evci et al. 2020, "Rigging the lottery", table 1.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.snfs(optax.sgd(0.1, momentum=0.9), density=0.25)
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> int(sj.masks(state)["kernel"].sum())
    16
  """
  move = () if redistribute_by is None else (redistribute(redistribute_by),)
  changes = chain(drop(magnitude, drop_fraction), *move, grow(accumulated_magnitude))
  return sparsify(
    inner,
    accumulate(signed_gradient, changes, decay=momentum),
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
