"""AC/DC: alternating compressed and decompressed training (Peste et al. 2021)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
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
  check_callable,
  from_vector,
  layer_sizes,
)
from sparsejax.core.structures import Structure, check_fits, density_of
from sparsejax.distributions import uniform
from sparsejax.scores import magnitude
from sparsejax.transforms import check_schedule, check_some_update, prune_to, sparsify


def ac_dc(
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
  sparse: Callable[[jax.Array], jax.Array] | None = None,
  structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Alternates dense phases with sparse phases of the largest weights (AC/DC).

  masks_l = the budget_l largest |w| of layer l in a sparse phase, all in a dense one

  Training is dense up to the first mask update, in step start_step + update_every. From
  then on sparse and dense phases of update_every steps alternate, beginning with a
  sparse one. If end_step is given, the phase after the last mask update is always
  sparse. The inner optimizer receives masked gradients; weights that become live in a
  dense phase start from exactly zero.

  Args:
    inner: any optax optimizer.
    density: fraction of weights kept, in (0, 1], in sparse phases.
    update_every: steps between mask updates: the length of a phase.
    start_step: steps before the schedule of mask updates begins.
    end_step: no mask update after this step; None for no limit. Set it to make sure
      that the network is sparse at the end.
    distribution: sets the budget of each layer; None selects over the whole network at
      once.
    where: which leaves are sparsified; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    seed: seed of the first masks and of random scores.
    sparse: `step -> bool`, whether the mask update at a step begins a sparse phase; it
      replaces the alternation. The paper's last dense phase is longer than the others.
    structure: which patterns of live weights are allowed; see `sparsify`.

  Returns:
    An optax transformation; see `sparsify`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected; the structure
      does not fit.

  References:
    Peste et al. 2021, "AC/DC: alternating compressed/decompressed training of deep
    neural networks", algorithm 1.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.ac_dc(optax.sgd(0.1, momentum=0.9), density=0.25, end_step=1000)
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> int(sj.masks(state)["kernel"].sum())
    64
  """
  check_schedule(update_every, start_step, end_step)
  if update_every is not None:
    check_some_update(update_every, start_step, end_step)
  if sparse is None:
    if update_every is None:
      raise ValueError(
        "update_every must be an integer where sparse is None, got None."
      )
    sparse = _alternating(update_every, start_step, end_step)
  return sparsify(
    inner,
    alternate(
      prune_to(magnitude, density_of(density, structure), distribution), sparse
    ),
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


def alternate(
  transform: MaskTransform, when: Callable[[jax.Array], jax.Array]
) -> MaskTransform:
  """Applies a mask transform at some mask updates and unmasks everything at others.

  topology = transform(topology) if when(step) else all live

  Args:
    transform: the mask transform for the updates at which `when` is true.
    when: `step -> bool`, possibly traced.

  Returns:
    A mask transform.

  Raises:
    TypeError: transform is not a mask transform, or `when` is not a function.

  Example:
    >>> import sparsejax as sj
    >>> prune = sj.prune_to(sj.magnitude, 0.1)
    >>> transform = sj.alternate(prune, lambda step: step % 20 == 0)
  """
  if not isinstance(transform, MaskTransform):
    raise TypeError(f"transform must be a MaskTransform, got {transform!r}.")
  check_callable("when", when, "a function of the step", 1)

  def update(inputs: ScoreInputs, topology: Topology, state: PyTree):
    # The transform always runs, for `when` may be traced; where it is false, its result
    # is replaced by full masks and budgets, and its scores need not be finite.
    new, state = transform.update(inputs, topology, state)
    on = jnp.asarray(when(inputs.step))
    masks, budgets = topology.masks, topology.budgets
    sizes = jnp.asarray(layer_sizes(masks, budgets), jnp.int32)
    return topology._replace(
      masks=jax.tree.map(lambda m: m | ~on, new.masks),
      budgets=jax.tree.map(
        lambda b, n: jnp.where(on, b, n), new.budgets, from_vector(sizes, budgets)
      ),
      finite=new.finite | ~on,
    ), state

  def fits(structure, shapes):
    check_fits(transform, structure, shapes)

  return MaskTransform(transform.init, update, fits, transform.observe, transform.check)


def _alternating(update_every: int, start_step: int, end_step: int | None):
  """Returns AC/DC's `step -> bool`, True at the mask updates that make masks sparse.

  These are the first, third, fifth, ... mask update and the last one.
  """

  def sparse(step):
    phase = (step - start_step) // update_every
    odd = phase % 2 == 1
    if end_step is None:
      return odd
    return odd | (phase >= (end_step - start_step) // update_every)

  return sparse
