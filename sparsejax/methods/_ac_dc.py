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
from sparsejax.transforms import check_schedule, prune_to, sparsify


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
  """Alternates phases in which all weights train and phases of the largest only.

  masks_l = the budget_l largest |w| of layer l in a sparse phase, all in a dense one

  Training is dense up to the first mask update, after start_step + update_every steps;
  from there on phases of update_every steps alternate, the first of them sparse, and
  the one after the last mask update always is. Gradients are masked; weights that a
  dense phase wakes start from exactly zero.

  Args:
    inner: any optax optimizer.
    density: fraction of weights live in sparse phases, in (0, 1].
    update_every: length of a phase, in steps.
    start_step: see `sparsify`.
    end_step: the masks stay as they are after that many steps; needed for the network
      to end sparse for sure.
    distribution: of the live weights over the layers; None selects over the whole
      network at once.
    where: see `sparsify`.
    stacked: see `sparsify`.
    input_axes: see `sparsify`.
    seed: see `sparsify`.
    sparse: `step -> bool`, whether a mask update at that step begins a sparse phase; in
      place of the alternation. The paper's last dense phase is longer than the others.
    structure: see `sparsify`.

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
  """A mask transform at some mask updates; everything live after the others.

  topology = transform(topology) if when(step) else all live

  Args:
    transform: what happens at the updates that `when` says.
    when: `step -> bool`, possibly traced.

  Returns:
    A mask transform.

  Raises:
    TypeError: transform is not a mask transform, or when no function.

  Example:
    >>> import sparsejax as sj
    >>> prune = sj.prune_to(sj.magnitude, 0.1)
    >>> transform = sj.alternate(prune, lambda step: step % 20 == 0)
  """
  if not isinstance(transform, MaskTransform):
    raise TypeError(f"transform must be a MaskTransform, got {transform!r}.")
  check_callable("when", when, "a function of the step", 1)

  def update(inputs: ScoreInputs, topology: Topology, state: PyTree):
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
  """Sparse after every other mask update, the first and the last included."""

  def sparse(step):
    phase = (step - start_step) // update_every
    odd = phase % 2 == 1
    if end_step is None:
      return odd
    return odd | (phase >= (end_step - start_step) // update_every)

  return sparse
