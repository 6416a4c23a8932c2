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
  """Starts dense and prunes weights that move towards zero along a cubic schedule.

  S <- S - w dL/dw at every step;  masks_l = the budget_l largest S of layer l

  Densities are those of `gradual_magnitude`. The inner optimizer receives masked
  gradients. S takes one float32 per weight. Here a masked weight is exactly zero and
  its S no longer changes, so it never becomes live again; in the paper masks act in the
  forward pass only, and masked weights may become live again.

  Args:
    inner: any optax optimizer.
    density: fraction of weights kept, in (0, 1], at the end of the cubic; or a schedule
      `step -> density` that replaces the cubic.
    update_every: steps between mask updates.
    start_step: steps before the schedule of mask updates begins.
    end_step: no mask update after this step; required.
    distribution: sets the budget of each layer, at every density; None selects over the
      whole network at once.
    where: which leaves are sparsified; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    seed: seed of the first masks and of random scores.
    initial_density: density at the start of the cubic, in (0, 1].
    structure: which patterns of live weights are allowed; see `sparsify`.

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
