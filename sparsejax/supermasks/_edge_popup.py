"""Edge-popup: training of scores that select a subnetwork of random weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax.core import (
  Distribution,
  MaskTransform,
  PyTree,
  SparseState,
  Where,
  align,
  check_where,
  choose,
  initial_warm_start,
  is_placeholder,
  merged_masks,
  scores_are_finite,
  select,
  size_per_live,
  sparse_states,
  to_vector,
  warm_select,
)
from sparsejax.distributions import uniform
from sparsejax.methods import init_scores
from sparsejax.transforms import effective, sparsify_forward


class SupermaskState(NamedTuple):
  """The optimizer state of a network whose masks are learned.

  Attributes:
    scores: tree like the params, with float arrays that determine the masks at the
      masked leaves and None elsewhere.
    sparse: the state of the scores' optimizer, including the masks.
  """

  scores: PyTree
  sparse: SparseState


def edge_popup(
  inner: optax.GradientTransformation,
  density: float,
  *,
  distribution: Distribution = uniform,
  where: Where = None,
  seed: Any = 0,
  update_every: int | None = 1,
  start_step: int = 0,
  end_step: int | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Finds a subnetwork of random weights by training scores; weights are fixed.

  e = w where |s| is among the best of its layer, else 0;  dL/ds := sign(s) w dL/de

  This is `sj.supermask` as an optimizer of the weights. The scores are part of its
  state. Compute the loss with the weights `sj.effective(params, opt_state)`, as with
  `sj.straight_through`. The updates leave every parameter unchanged, bit for bit,
  including biases, so that a trained network can be stored as its seed and a mask
  (`save_supermask`). Use weights initialized by `models.signed_kaiming_constant`, no
  biases, and batch normalization without scale and shift.

  The density is used in `init` only. After that, the budgets in the state determine how
  many weights each layer keeps. States of different densities, also from
  `sj.with_masks`, are thus trained by the same compiled program.

  Args:
    inner: any optax optimizer; it updates the scores.
    density: fraction of weights kept, in (0, 1).
    distribution: divides the live weights over the layers.
    where: selects the leaves to mask; see `sparsify`.
    seed: the seed of the initial scores, an integer that may be traced.
    update_every: steps between mask updates; see `sparsify`.
    start_step: see `sparsify`.
    end_step: see `sparsify`.

  Returns:
    An optax transformation with a `SupermaskState`; `sj.masks` works on it.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: density is not inside (0, 1), or no leaf is selected.

  References:
    Ramanujan et al. 2020, "What's hidden in a randomly weighted neural network?", eq. 4
    to 6 (their code takes |s|).

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> params = {"kernel": jnp.ones((8, 8)), "bias": jnp.zeros(8)}
    >>> tx = edge_popup(optax.sgd(0.1, momentum=0.9), density=0.5)
    >>> state = tx.init(params)
    >>> updates, state = tx.update(params, state, params)
    >>> after = optax.apply_updates(params, updates)
    >>> int(sj.masks(state)["kernel"].sum()), bool((after["kernel"] == 1).all())
    (32, True)
  """
  check_kept(density)
  check_where("where", where)
  return frozen(
    sparsify_forward(
      inner,
      _BEST,
      density,
      distribution=distribution,
      where=lambda path, leaf: True,
      seed=seed,
      update_every=update_every,
      start_step=start_step,
      end_step=end_step,
    ),
    lambda params: init_scores(params, jax.random.key(seed), where),
    lambda scores: jax.tree.map(jnp.sign, scores),
  )


def frozen(
  optimizer: optax.GradientTransformationExtraArgs,
  first_scores: Callable[[PyTree], PyTree],
  slope: Callable[[PyTree], PyTree],
) -> optax.GradientTransformationExtraArgs:
  """Turns an optimizer of scores into one of weights that leaves the weights unchanged.

  dL/ds := slope(s) w dL/de

  Args:
    optimizer: the optimizer of the scores, created by `sparsify_forward`.
    first_scores: `params -> scores`, with None at leaves without scores.
    slope: `scores -> dm/ds`, the derivative that the backward pass uses.

  Returns:
    An optax transformation with a `SupermaskState`.
  """

  def init_fn(params):
    scores = params if is_placeholder(params) else first_scores(params)
    sparse: Any = optimizer.init(scores)
    return SupermaskState(scores, sparse)

  def update_fn(updates, state, params=None, **extra_args):
    if params is None:
      raise ValueError(
        "params must be passed to update: tx.update(grads, opt_state, params); "
        "got None."
      )
    # The gradients of the scores, at the leaves that have scores.
    chosen = [s is not None for s in align(params, state.scores)]
    grads = jax.tree.map(
      lambda s, slope_, w, g: slope_ * w.astype(s.dtype) * g.astype(s.dtype),
      state.scores,
      slope(state.scores),
      choose(params, chosen),
      choose(updates, chosen),
    )
    sparse: Any = state.sparse
    steps, sparse = optimizer.update(grads, sparse, state.scores, **extra_args)
    scores = optax.apply_updates(state.scores, steps)
    # Return updates of -0.0: x + -0.0 is x for every float, whereas x + 0.0 loses the
    # sign of -0.0.
    still = jax.tree.map(lambda u: -jnp.zeros_like(u), updates)
    return still, SupermaskState(scores, sparse)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def rescaled_effective(params: PyTree, opt_state: PyTree) -> PyTree:
  """Computes `sj.effective` with the dynamic rescaling of Zhou et al.

  e_l = (size_l / live_l) m_l w_l;  de/dw = size_l / live_l everywhere

  The average magnitude of a layer's outputs then does not depend on how many weights
  its mask keeps.

  Args:
    params: any pytree of arrays.
    opt_state: the optimizer state, as in `sj.effective`.

  Returns:
    A tree like `params` with the same dtypes. Leaves without a mask are unchanged, and
    a layer without live weights stays all zero.

  Raises:
    ValueError: structures or shapes differ, or `opt_state` has no sparse optimizer.

  References:
    Zhou et al. 2019, "Deconstructing lottery tickets: zeros, signs, and the supermask",
    section 5.2.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> params = {"kernel": jnp.array([[1.0, -2.0, 3.0, 0.5]])}
    >>> state = sj.straight_through(optax.sgd(0.1), density=0.5).init(params)
    >>> rescaled_effective(params, state)["kernel"]
    Array([[ 0., -4.,  6.,  0.]], dtype=float32)
  """
  weights = effective(params, opt_state)  # raises if there is no sparsified optimizer
  leaves, treedef = jax.tree.flatten(weights)
  # The factor of each layer, in the shape of its leaf so that `align` finds its place.
  factors = merged_masks(
    sparse_states(opt_state),
    lambda _, mask, budget: jnp.broadcast_to(size_per_live(mask, budget), mask.shape),
  )
  both = zip(leaves, align(params, factors, strict=False), strict=True)
  return treedef.unflatten(w if f is None else w * f.astype(w.dtype) for w, f in both)


def check_kept(density: Any) -> None:
  """Raises an error unless `density` is a number inside (0, 1)."""
  if isinstance(density, bool) or not isinstance(density, (int, float, np.number)):
    raise TypeError(f"density must be a number, got {density!r}.")
  if not 0 < density < 1:
    raise ValueError(
      "density must lie inside (0, 1): at 0 nothing is left of the network, at 1 there "
      f"is no mask to learn; got {density}."
    )


def _best(inputs, topology, guess):
  scores, treedef = jax.tree.flatten(jax.tree.map(jnp.abs, inputs.params))
  everything = [jnp.ones_like(m) for m in jax.tree.leaves(topology.masks)]
  finite = topology.finite & scores_are_finite(scores, everything)
  budgets = to_vector(topology.budgets)
  if any(s.dtype == jnp.float64 for s in scores):
    masks = select(scores, budgets, [None] * len(scores), [0] * len(scores))
  else:
    masks, guess = warm_select(scores, budgets, guess)
  return topology._replace(masks=treedef.unflatten(masks), finite=finite), guess


# Scores change little per step, and so does the threshold of the best ones. Selection
# therefore starts from the previous threshold, which is the state of the transform.
_BEST = MaskTransform(
  lambda params: initial_warm_start(len(jax.tree.leaves(params))), _best
)
