"""Movement pruning (Sanh et al. 2020)."""

from typing import Any

import optax

from sparsejax.core import Distribution, InputAxes, Stacked, Where
from sparsejax.core.structures import Structure, density_of
from sparsejax.distributions import uniform
from sparsejax.methods._gradual_magnitude import gradual_density
from sparsejax.scores import accumulated, movement
from sparsejax.transforms import accumulate, prune_to, sparsify


def movement_pruning(
  inner: optax.GradientTransformation,
  density: Any,
  *,
  update_every: int | None = 100,
  start_step: int = 0,
  end_step: int | None = None,
  distribution: Distribution | None = uniform,
  where: Where = None,
  stacked: Stacked = False,
  input_axes: InputAxes = None,
  seed: Any = 0,
  initial_density: float = 1.0,
  structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Starts dense and prunes, along a cubic, the weights that move towards zero.

  S <- S - w dL/dw at every step;  masks_l = the budget_l largest S of layer l

  with densities as in `gradual_magnitude`. Gradients are masked. S is one float32 a
  weight. A dead weight is exactly zero here and its S stands still, so nothing returns;
  in the paper masks act in the forward pass only, and weights may.

  Args:
    inner: any optax optimizer.
    density: fraction of weights live at the end, in (0, 1]; or a schedule
      `step -> density` that takes the place of the cubic.
    update_every: steps between mask updates.
    start_step: see `sparsify`.
    end_step: the step of the last mask update, required.
    distribution: of the live weights over the layers, at every density; None selects
      over the whole network at once.
    where: see `sparsify`.
    stacked: see `sparsify`.
    input_axes: see `sparsify`.
    seed: see `sparsify`.
    initial_density: where the cubic starts, in (0, 1].
    structure: see `sparsify`.

  Returns:
    An optax transformation; see `sparsify`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected; the structure
      does not fit.

  References:
    Sanh et al. 2020, "Movement pruning: adaptive sparsity by fine-tuning", eq. 3.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.movement_pruning(optax.sgd(0.1), density=0.25, end_step=1000)
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> int(sj.masks(state)["kernel"].sum())
    64
  """
  schedule = gradual_density(
    density_of(density, structure), initial_density, update_every, start_step, end_step
  )
  return sparsify(
    inner,
    accumulate(movement, prune_to(accumulated, schedule, distribution)),
    None,
    update_every=update_every,
    start_step=start_step,
    end_step=end_step,
    distribution=distribution or uniform,
    where=where,
    stacked=stacked,
    input_axes=input_axes,
    seed=seed,
    mask_gradients=True,
    structure=structure,
  )
