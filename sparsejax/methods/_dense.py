"""Dense training, with the state of a sparse optimizer."""

from typing import Any

import optax

from sparsejax.core import Distribution, InputAxes, Stacked, Where
from sparsejax.distributions import check_density, uniform
from sparsejax.transforms import chain, sparsify


def dense(
  inner: optax.GradientTransformation,
  density: Any = 1.0,
  *,
  update_every: int | None = 100,
  start_step: int = 0,
  end_step: int | None = None,
  distribution: Distribution = uniform,
  where: Where = None,
  stacked: Stacked = False,
  input_axes: InputAxes = None,
  seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
  """A no-op that carries the same state: every weight stays live.

  masks = 1

  For comparisons: swap the name in a sparse run and nothing else changes.

  Args:
    inner: any optax optimizer.
    density: accepted for the common signature, without effect.
    update_every: accepted, without effect.
    start_step: accepted, without effect.
    end_step: accepted, without effect.
    distribution: accepted, without effect.
    where: see `sparsify`.
    stacked: see `sparsify`.
    input_axes: see `sparsify`.
    seed: see `sparsify`.

  Returns:
    An optax transformation; see `sparsify`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.dense(optax.sgd(0.1, momentum=0.9), density=0.25)
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> int(sj.masks(state)["kernel"].sum())
    64
  """
  check_density(density)
  return sparsify(
    inner,
    chain(),
    None,
    update_every=update_every,
    start_step=start_step,
    end_step=end_step,
    distribution=distribution,
    where=where,
    stacked=stacked,
    input_axes=input_axes,
    seed=seed,
    mask_gradients=False,
  )
