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
  """Uses the best weights in the forward pass and trains all of them.

  e = w where w is among the best of its layer, else 0;  dL/dw := dL/de

  The loss must use `sj.effective(params, opt_state)` as its weights. The gradient with
  respect to the effective weights updates all weights, masked ones included. A masked
  weight whose score rises above that of a live weight replaces it at the next mask
  update. Params stay dense: masked weights are exactly zero in `effective` and in
  `sj.apply_masks(params, masks)` only.

  Args:
    inner: any optax optimizer.
    density: fraction of weights kept, in (0, 1], or a schedule `step -> density`.
    update_every: steps between mask updates.
    start_step: steps before the schedule of mask updates begins.
    end_step: no mask update after this step; None for no limit.
    distribution: sets the budget of each layer; None selects over the whole network at
      once.
    where: which leaves are sparsified; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    seed: seed of the first masks and of random scores.
    score: the score of each weight; the highest are kept. `random` draws new masks at
      every mask update, as a control.
    structure: which patterns of live weights are allowed; see `sparsify`.

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
    # With None all layers compete in `reselect`; the first masks of `sparsify` need
    # some distribution, but `init` replaces them by the result of the selection.
    distribution=uniform if distribution is None else distribution,
    where=where,
    stacked=stacked,
    input_axes=input_axes,
    seed=seed,
    structure=structure,
  )
