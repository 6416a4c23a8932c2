"""MEST: memory-economic sparse training (Yuan et al. 2021)."""

from typing import Any

import jax.numpy as jnp
import optax

from sparsejax.core import (
  Distribution,
  InputAxes,
  ScoreInputs,
  Stacked,
  Topology,
  Where,
  check_flag,
)
from sparsejax.core.structures import Structure, density_of
from sparsejax.distributions import uniform
from sparsejax.scores import magnitude_and_gradient, random
from sparsejax.transforms import (
  Fraction,
  chain,
  drop,
  extend,
  fraction_rule,
  grow,
  prune_to,
  sparsify,
)


def mest(
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
  gradient_weight: float = 0.01,
  soft_bound: bool = True,
  structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Drops by |w| + lambda |dL/dw| and regrows at random, in either order (MEST).

  hard bound: drop(s, drop_fraction) > grow(random),  s = |w| + lambda |dL/dw|
  soft bound: prune_to(s, density) > extend(drop_fraction) > grow(random)

  With the soft memory bound, the paper's EM&S, new weights are trained before any are
  dropped: a mask update first prunes each layer to its budget and then adds
  drop_fraction of it, so between mask updates a layer has 1 + drop_fraction times its
  budget of live weights. The last mask update by the schedule (`end_step`) adds none;
  from then on the density is exactly `density`. Without an `end_step` the added weights
  stay. With the hard bound, the paper's EM, the density never exceeds `density`.

  Only gradients of live weights are used, so no step needs dense gradients. The inner
  optimizer receives masked gradients.

  Args:
    inner: any optax optimizer.
    density: fraction of weights kept, in (0, 1].
    update_every: steps between mask updates.
    start_step: steps before the schedule of mask updates begins.
    end_step: no mask update after this step; None for no limit.
    distribution: sets the budget of each layer.
    where: which leaves are sparsified; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    seed: seed of the first masks and of random scores.
    drop_fraction: fraction of each layer's budget that a mask update replaces: a float
      or a schedule. The authors' scripts decrease it in steps to zero ("elastic
      mutation"); for 90 % sparsity by 0.2, 0.1, 0 with the hard bound and 0.5, 0.25, 0
      with the soft one.
    gradient_weight: lambda, at least 0, in units of weight per gradient. It is 0 by
      default in the authors' program.
    soft_bound: whether weights are grown before the worst are dropped.
    structure: which patterns of live weights are allowed; see `sparsify`.

  Returns:
    An optax transformation; see `sparsify`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected; the structure
      does not fit.

  References:
    Yuan et al. 2021, "MEST: accurate and fast memory-economic sparse training framework
    on the edge", and the authors' program.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.mest(optax.sgd(0.1, momentum=0.9), density=0.25, end_step=1000)
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> int(sj.masks(state)["kernel"].sum())
    16
  """
  check_flag("soft_bound", soft_bound)
  density = density_of(density, structure)
  score = magnitude_and_gradient(gradient_weight)
  rule = fraction_rule(drop_fraction, "drop_fraction")
  if soft_bound:
    # The last mask update must leave exactly the budget.
    def added(inputs: ScoreInputs, topology: Topology):
      fraction = rule(inputs, topology)
      if update_every is None or end_step is None:
        return fraction
      last = inputs.step + update_every > end_step
      return jnp.where(last, jnp.zeros_like(fraction), fraction)

    changes = chain(prune_to(score, density, distribution), extend(added), grow(random))
  else:
    changes = chain(drop(score, rule), grow(random))
  return sparsify(
    inner,
    changes,
    density,
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
