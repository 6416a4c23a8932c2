"""Dense training with the state of a sparse optimizer."""

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
  """Trains a dense network with the state of a sparse optimizer.

  masks = 1

  The dense baseline: replace the method's name in a sparse run, and nothing else
  changes. Every weight stays live, and the inner optimizer's updates are unchanged.

  Args:
    inner: any optax optimizer.
    density: accepted for the common signature; has no effect.
    update_every: accepted for the common signature; has no effect.
    start_step: accepted for the common signature; has no effect.
    end_step: accepted for the common signature; has no effect.
    distribution: accepted for the common signature; has no effect.
    where: which leaves are sparsified; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    seed: seed of the first masks and of random scores.

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
