"""A fixed random mask."""

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
  """Trains the weights of a random mask that never changes.

  masks = random at the distribution's budgets, for good

  Gradients are masked. The control that every dynamic method must beat.

  Args:
    inner: any optax optimizer.
    density: fraction of weights live, in (0, 1].
    update_every: accepted for the common signature; masks never change.
    start_step: accepted, without effect.
    end_step: accepted, without effect.
    distribution: of the weights live at the start.
    where: see `sparsify`.
    stacked: see `sparsify`.
    input_axes: see `sparsify`.
    seed: see `sparsify`.
    structure: see `sparsify`.

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
