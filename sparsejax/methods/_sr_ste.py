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
  """SR-STE: straight-through, with a decay that holds dead weights down.

  e = w where |w| is among the largest, else 0;  dL/dw := dL/de + refinement (1 - m) w

  The loss takes its weights from `sj.effective(params, opt_state)`. Gradients are
  dense, and the decay goes through the inner optimizer with them: masks settle, where
  plain straight-through training keeps swapping weights. Params stay dense; see
  `straight_through`. The paper's masks are N:M: `structure=sj.n_m(2, 4)`.

  Args:
    inner: any optax optimizer; the paper's is SGD with momentum.
    density: fraction of weights live, in (0, 1], or a schedule `step -> density`.
    update_every: steps between mask updates; 1 is the paper's.
    start_step: see `sparsify`.
    end_step: see `sparsify`.
    distribution: of the live weights over the layers; None compares over all layers.
    where: see `sparsify`.
    stacked: see `sparsify`.
    input_axes: see `sparsify`.
    seed: see `sparsify`.
    refinement: lambda, the decay of dead weights, 0 or more.
    structure: see `sparsify`.

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
