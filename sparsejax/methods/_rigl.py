"""RigL (Evci et al. 2020)."""

from typing import Any

import numpy as np
import optax

from sparsejax.core import (
  Distribution,
  InputAxes,
  Score,
  Stacked,
  Where,
  check_flag,
  check_number,
  may_be_nonzero,
)
from sparsejax.core.structures import Structure, density_of
from sparsejax.distributions import uniform
from sparsejax.scores import (
  accumulated_magnitude,
  gradient,
  magnitude,
  noisy,
  signed_gradient,
)
from sparsejax.transforms import (
  Fraction,
  accumulate,
  chain,
  drop,
  fraction_rule,
  grow,
  initialize_grown,
  sparsify,
)


def rigl(
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
  drop_noise: float = 0.0,
  accumulate_gradients: bool = False,
  grow_init: str | Score = "zeros",
  grow_scale: float = 1.0,
  structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Drops each layer's smallest weights and regrows by the gradient (RigL).

  drop(|w|, drop_fraction) > grow(|dL/dw|)

  The inner optimizer receives masked gradients; growth uses the dense gradient of the
  step at which the masks change. Each layer keeps its budget. The paper's better
  variant sets the budgets by `distribution=sj.erk` and stops mask updates after three
  quarters of the run (`end_step`).

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
      The paper decays it to zero: `optax.cosine_decay_schedule(0.3, end_step)`.
    drop_noise: standard deviation of the Gaussian noise added to |w| when weights are
      dropped.
    accumulate_gradients: whether growth uses the sum of the gradients since the last
      mask update, which the state then keeps, instead of the gradient of one step.
    grow_init: initial values of grown weights: "zeros", "random", "gradient",
      "initial" or a function; see `initialize_grown`.
    grow_scale: factor on the initial values of grown weights.
    structure: which patterns of live weights are allowed; see `sparsify`.

  Returns:
    An optax transformation; see `sparsify`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected; the structure
      does not fit.

  References:
    Evci et al. 2020, "Rigging the lottery: making all tickets winners", algorithm 1.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.rigl(optax.sgd(0.1, momentum=0.9), density=0.25)
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> int(sj.masks(state)["kernel"].sum())
    16
  """
  # The only choices are the scores: noise on |w| for dropping, and the gradient of one
  # step or its running sum for growing.
  check_flag("accumulate_gradients", accumulate_gradients)
  check_number("drop_noise", drop_noise, "be at least 0", lambda v: 0 <= v < np.inf)
  noise = may_be_nonzero(drop_noise)
  drop_score = noisy(magnitude, drop_noise) if noise else magnitude
  fraction = fraction_rule(drop_fraction, "drop_fraction")
  if accumulate_gradients:
    changes = chain(drop(drop_score, fraction), grow(accumulated_magnitude))
    changes = accumulate(signed_gradient, changes, reset=True)
  else:
    changes = chain(drop(drop_score, fraction), grow(gradient))
  tx = sparsify(
    inner,
    changes,
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
  return initialize_grown(tx, grow_init, grow_scale, input_axes=input_axes)
