"""Training with a fixed random mask."""

from typing import Any

import optax

from sparsejax.core import Distribution, InputAxes, Stacked, Where
from sparsejax.core.structures import Structure, density_of
from sparsejax.distributions import uniform
from sparsejax.transforms import chain, check_schedule, sparsify


def static_sparse(
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
  structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Trains a network whose random masks never change.

  masks = random at the distribution's budgets, for good

  The inner optimizer receives masked gradients. This is the control that every dynamic
  method must beat.

  Args:
    inner: any optax optimizer.
    density: fraction of weights kept, in (0, 1].
    update_every: accepted for the common signature; has no effect.
    start_step: accepted for the common signature; has no effect.
    end_step: accepted for the common signature; has no effect.
    distribution: sets the budget of each layer at the start.
    where: which leaves are sparsified; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    seed: seed of the first masks and of random scores.
    structure: which patterns of live weights are allowed; see `sparsify`.

  Returns:
    An optax transformation; see `sparsify`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected; the structure
      does not fit.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.static_sparse(optax.sgd(0.1, momentum=0.9), density=0.25)
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> int(sj.masks(state)["kernel"].sum())
    16
  """
  check_schedule(update_every, start_step, end_step)
  density = density_of(density, structure)
  if structure is not None and structure.ablates:
    raise ValueError(
      f"static_sparse must not be used with the structure {structure.name}: neurons "
      "are ablated where weights grow; pass ablation=None."
    )
  return sparsify(
    inner,
    chain(),
    density,
    update_every=None,
    distribution=distribution,
    where=where,
    stacked=stacked,
    input_axes=input_axes,
    seed=seed,
    mask_gradients=True,
    structure=structure,
  )
