"""Dynamic sparse reparameterization (Mostafa & Wang 2019)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax.core import (
  Distribution,
  InputAxes,
  MaskTransform,
  PyTree,
  ScoreInputs,
  Stacked,
  Topology,
  Where,
  check_number,
  from_vector,
  live_counts,
  scores_are_finite,
  to_vector,
  top_k_masks,
  widened,
)
from sparsejax.core.structures import Structure, density_of
from sparsejax.distributions import uniform
from sparsejax.scores import magnitude, random
from sparsejax.transforms import (
  Fraction,
  ceil_fraction,
  chain,
  checked_fraction,
  fraction_rule,
  grow,
  redistribute,
  sparsify,
  survivors,
)


def dsr(
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
  drop_fraction: Fraction = 0.1,
  threshold: float = 1e-3,
  tolerance: float = 0.1,
  structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Drops below one adaptive threshold and regrows where most weights survive (DSR).

  drop(|w| < H) > redistribute(survivors) > grow(random), with H as in `drop_below`

  The inner optimizer receives masked gradients. The total number of live weights never
  changes: as many weights as were dropped are grown at random positions, divided among
  the layers in proportion to the weights that they kept.

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
    drop_fraction: fraction of the live weights that the threshold should drop: a float
      or a schedule. The paper sets their number instead.
    threshold: H at the start.
    tolerance: relative deviation from that target up to which H is left unchanged.
    structure: must be None.

  Returns:
    An optax transformation; see `sparsify`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected; the structure
      does not fit.

  References:
    Mostafa & Wang 2019, "Parameter efficient training of deep convolutional neural
    networks by dynamic sparse reparameterization", algorithm 1.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.dsr(optax.sgd(0.1, momentum=0.9), density=0.25)
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> int(sj.masks(state)["kernel"].sum())
    16
  """
  changes = chain(
    drop_below(threshold, fraction_rule(drop_fraction, "drop_fraction"), tolerance),
    redistribute(survivors),
    grow(random),
  )
  return sparsify(
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


class ThresholdState(NamedTuple):
  """The state of `drop_below`.

  Attributes:
    threshold: float32 scalar, the magnitude below which the next mask update drops.
  """

  threshold: jax.Array


def drop_below(
  threshold: float, fraction: Fraction, tolerance: float = 0.1
) -> MaskTransform:
  """Drops all weights below one threshold, which then adapts to their number.

  live_l = max(#{i live in l : |w_i| >= H}, 1);  then, with D dropped and
  A = sum_l ceil(fraction * budget_l) as the aim,
  H <- 2 H if D < (1 - tolerance) A, H / 2 if D > (1 + tolerance) A

  Budgets are unchanged. The new H applies from the next mask update on.

  Args:
    threshold: H at the start, above 0.
    fraction: fraction of the budgets that H should drop; as in `drop`.
    tolerance: relative deviation from A up to which H is left unchanged; at least 0.

  Returns:
    A mask transform with H in its state. It supports no structures.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range.

  References:
    Mostafa & Wang 2019, algorithm 1. There a layer may lose all its weights and then
    never regrows any; here its largest weight stays live.

  Example:
    >>> import sparsejax as sj
    >>> transform = sj.chain(sj.drop_below(1e-3, 0.1), sj.grow(sj.random))
  """
  check_number("threshold", threshold, "be above 0", lambda v: 0 < v < np.inf)
  check_number("tolerance", tolerance, "be at least 0", lambda v: 0 <= v < np.inf)
  rule = fraction_rule(fraction)

  def init(params: PyTree):
    return ThresholdState(jnp.asarray(threshold, jnp.float32))

  def update(inputs: ScoreInputs, topology: Topology, state: ThresholdState):
    # Count the weights at or above H in each layer; at least one stays live.
    masks, budgets = topology.masks, topology.budgets
    scores, h = magnitude(inputs), state.threshold
    reaches = lambda s: s >= h.astype(s.dtype)
    above = jax.tree.map(lambda s, m: m & reaches(widened(s)), scores, masks)
    live = live_counts(masks, budgets)
    keep = jnp.maximum(live_counts(above, budgets), jnp.minimum(live, 1))
    # Double or halve H for the next mask update if the number dropped misses the target
    # by more than the tolerance. Totals over large networks need 64 bits.
    share, sound = checked_fraction(
      rule(inputs, topology), to_vector(budgets), "drop_fraction"
    )
    aim = ceil_fraction(share, to_vector(budgets))
    with jax.enable_x64(True):
      dropped = jnp.sum((live - keep).astype(jnp.int64)).astype(jnp.float64)
      aim = jnp.sum(aim.astype(jnp.int64)).astype(jnp.float64)
      few = dropped < (1 - tolerance) * aim
      many = dropped > (1 + tolerance) * aim
    factor = jnp.where(few, jnp.float32(2), jnp.where(many, jnp.float32(0.5), 1.0))
    range_ = jnp.finfo(jnp.float32)
    after = jnp.clip(h * factor, range_.tiny, range_.max)
    # The k largest of a layer, with k the count above, are those at or above H.
    finite = topology.finite & sound & scores_are_finite(scores, masks)
    masks = top_k_masks(scores, from_vector(keep, budgets), masks)
    return topology._replace(masks=masks, finite=finite), ThresholdState(after)

  return MaskTransform(init, update)
