"""SNFS as in RigL's paper: growth by a running average of the dense gradients."""

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
  fraction_rule,
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
  """Moves budgets and regrows by its own average of dense gradients (SNFS).

  a <- momentum * a + g;  drop(|w|, drop_fraction) > redistribute(|a|) > grow(|a|)

  The inner optimizer receives masked gradients; the average a is of the dense
  gradients. The method keeps this average itself, so, unlike in `sparse_momentum`, its
  coefficient does not depend on the inner optimizer. That costs one float32 per weight.

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
    momentum: coefficient of the average, in (0, 1].
    redistribute_by: see `redistribute`; with None each layer keeps its budget, as in
      the code of RigL's authors.
    structure: which patterns of live weights are allowed; see `sparsify`.

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
  changes = chain(
    drop(magnitude, fraction_rule(drop_fraction, "drop_fraction")),
    *move,
    grow(accumulated_magnitude),
  )
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
