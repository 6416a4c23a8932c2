"""GraNet (Liu et al. 2021)."""

from typing import Any

import optax

from sparsejax.core import Distribution, InputAxes, Stacked, Where
from sparsejax.core.structures import Structure, density_of
from sparsejax.distributions import erk
from sparsejax.methods._gradual_magnitude import gradual_density
from sparsejax.scores import gradient, magnitude
from sparsejax.transforms import (
  Fraction,
  chain,
  drop,
  fraction_rule,
  grow,
  prune_to,
  sparsify,
)


def granet(
  inner: optax.GradientTransformation,
  density: Any,
  *,
  update_every: int | None = 100,
  start_step: int = 0,
  end_step: int | None = None,
  distribution: Distribution | None = None,
  where: Where = None,
  stacked: Stacked = False,
  input_axes: InputAxes = None,
  seed: Any = 0,
  initial_density: float = 1.0,
  drop_fraction: Fraction = 0.5,
  structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Prunes gradually, and drops and regrows weights at every mask update (GraNet).

  prune_to(|w|, density(t)) > drop(|w|, drop_fraction) > grow(|dL/dw|)

  density(t) is the cubic of `gradual_magnitude`. Pruning selects over the whole network
  at once; dropping and growing act within each layer, as in RigL, and leave its number
  of live weights unchanged. So connections that were pruned too early can return ("zero
  cost neuroregeneration"). A weight that is pruned or dropped and grown again in the
  same mask update keeps its value; the authors' program sets it to zero, and goes on
  dropping and growing after the cubic has ended. The inner optimizer receives masked
  gradients.

  With `initial_density=1`, the default, training starts dense. With a lower one it is
  sparse from the first step (the paper uses 0.5, and the budgets of `erk`).

  Args:
    inner: any optax optimizer.
    density: fraction of weights kept, in (0, 1], at the end of the cubic; or a schedule
      `step -> density` that replaces the cubic.
    update_every: steps between mask updates.
    start_step: steps before the schedule of mask updates begins.
    end_step: no mask update after this step; required. The final density is reached at
      the last mask update at or before this step.
    distribution: sets the budget of each layer, at every density; None, the paper's
      choice, prunes over the whole network at once. Required with a structure.
    where: which leaves are sparsified; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    seed: seed of the first masks and of random scores.
    initial_density: density at the start of the cubic, in (0, 1].
    drop_fraction: fraction of each layer's live weights that are dropped and regrown at
      a mask update: a float or a schedule. The authors' program starts at 0.5 and
      decays it by a cosine.
    structure: which patterns of live weights are allowed; see `sparsify`.

  Returns:
    An optax transformation; see `sparsify`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected; the structure
      does not fit.

  References:
    Liu et al. 2021, "Sparse training via boosting pruning plasticity with
    neuroregeneration", and the authors' program.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.granet(optax.sgd(0.1, momentum=0.9), density=0.25, end_step=1000)
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> int(sj.masks(state)["kernel"].sum())
    64
  """
  schedule = gradual_density(
    density_of(density, structure), initial_density, update_every, start_step, end_step
  )
  changes = chain(
    prune_to(magnitude, schedule, distribution),
    drop(magnitude, fraction_rule(drop_fraction, "drop_fraction")),
    grow(gradient),
  )
  starts_dense = isinstance(initial_density, (int, float)) and initial_density == 1
  return sparsify(
    inner,
    changes,
    None if starts_dense else initial_density,
    update_every=update_every,
    start_step=start_step,
    end_step=end_step,
    distribution=erk if distribution is None else distribution,
    where=where,
    stacked=stacked,
    input_axes=input_axes,
    seed=seed,
    mask_gradients=True,
    structure=structure,
  )
