"""Straight-through magnitude and random pruning."""

from typing import Any

import optax

from sparsejax.core import Distribution, InputAxes, Score, Stacked, Where
from sparsejax.core.structures import Structure, density_of
from sparsejax.distributions import uniform
from sparsejax.scores import magnitude
from sparsejax.transforms import reselect, sparsify_forward


def straight_through(
  inner: optax.GradientTransformation,
  density: Any,
  *,
  update_every: int | None = 1,
  start_step: int = 0,
  end_step: int | None = None,
  distribution: Distribution | None = uniform,
  where: Where = None,
  stacked: Stacked = False,
  input_axes: InputAxes = None,
  seed: Any = 0,
  score: Score = magnitude,
  structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Uses the best weights in the forward pass, and trains all of them.

  e = w where w is among the best of its layer, else 0;  dL/dw := dL/de

  The loss takes its weights from `sj.effective(params, opt_state)`. Gradients are
  those of the effective weights, handed to all weights alike, dead ones too; a dead
  weight that grows past a live one takes its place at the next step. Params stay
  dense: exact zeros hold for `effective`, and for `sj.apply_masks(params, masks)`.

  Args:
    inner: any optax optimizer.
    density: fraction of weights live, in (0, 1], or a schedule `step -> density`.
    update_every: steps between mask updates.
    start_step: see `sparsify`.
    end_step: see `sparsify`.
    distribution: of the live weights over the layers; None compares over all layers.
    where: see `sparsify`.
    stacked: see `sparsify`.
    input_axes: see `sparsify`.
    seed: see `sparsify`.
    score: what a weight is worth: `magnitude`; `random` draws other masks at every
      mask update, a control.
    structure: see `sparsify`.

  Returns:
    An optax transformation; see `sparsify_forward`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected; the structure
      does not fit.

  References:
    Bengio, Léonard & Courville 2013, "Estimating or propagating gradients through
    stochastic neurons". As magnitude and random STE in Lee et al. 2023, "JaxPruner".

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.straight_through(optax.sgd(0.1, momentum=0.9), density=0.25)
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> int(sj.masks(state)["kernel"].sum())
    16
  """
  density = density_of(density, structure)
  return sparsify_forward(
    inner,
    reselect(score, density, distribution),
    None if callable(density) else density,
    update_every=update_every,
    start_step=start_step,
    end_step=end_step,
    # Where layers compete, the masks before the first selection do not matter.
    distribution=uniform if distribution is None else distribution,
    where=where,
    stacked=stacked,
    input_axes=input_axes,
    seed=seed,
    structure=structure,
  )
