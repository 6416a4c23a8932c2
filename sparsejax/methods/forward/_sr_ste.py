"""SR-STE, the sparse-refined straight-through estimator (Zhou et al. 2021)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from sparsejax.core import Distribution, InputAxes, Stacked, Where, check_number
from sparsejax.core.structures import Structure, density_of
from sparsejax.distributions import uniform
from sparsejax.scores import magnitude
from sparsejax.transforms import map_masked, reselect, sparsify_forward


def sr_ste(
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
  refinement: float = 2e-4,
  structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Trains straight-through with a weight decay on masked weights (SR-STE).

  e = w where |w| is among the largest, else 0;  dL/dw := dL/de + refinement (1 - m) w

  m is the mask. The loss must use `sj.effective(params, opt_state)` as its weights.
  Gradients are dense, and the decay term is added to them before the inner optimizer.
  It makes the masks converge, where plain straight-through training keeps swapping
  weights. Params stay dense; see `straight_through`. The paper's masks are N:M:
  `structure=sj.n_m(2, 4)`.

  Args:
    inner: any optax optimizer; the paper uses SGD with momentum.
    density: fraction of weights kept, in (0, 1], or a schedule `step -> density`.
    update_every: steps between mask updates; the paper uses 1.
    start_step: steps before the schedule of mask updates begins.
    end_step: no mask update after this step; None for no limit.
    distribution: sets the budget of each layer; None selects over the whole network at
      once.
    where: which leaves are sparsified; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    seed: seed of the first masks and of random scores.
    refinement: lambda in the paper, the decay of masked weights; at least 0.
    structure: which patterns of live weights are allowed; see `sparsify`.

  Returns:
    An optax transformation; see `sparsify_forward`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected; the structure
      does not fit.

  References:
    Zhou et al. 2021, "Learning N:M fine-grained structured sparse neural networks from
    scratch", eq. 9.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.sr_ste(optax.sgd(0.1, momentum=0.9), density=0.25)
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> int(sj.masks(state)["kernel"].sum())
    16
  """
  check_number("refinement", refinement, "be at least 0", lambda v: 0 <= v < np.inf)
  density = density_of(density, structure)

  # What the inner optimizer receives: the gradients, with the decay where masked.
  def refined(grads, params, state):
    def refine(g, w, mask):
      pull = (refinement * w).astype(g.dtype)
      return jnp.where(mask, g, g + pull)

    return map_masked(refine, grads, params, state.masks)

  return sparsify_forward(
    inner,
    reselect(magnitude, density, distribution),
    None if callable(density) else density,
    update_every=update_every,
    start_step=start_step,
    end_step=end_step,
    distribution=uniform if distribution is None else distribution,
    where=where,
    stacked=stacked,
    input_axes=input_axes,
    seed=seed,
    structure=structure,
    gradients=refined,
  )
