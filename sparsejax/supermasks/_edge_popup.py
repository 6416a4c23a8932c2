"""Edge-popup: which random weights to use is learned, the weights are not."""

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
  count,
  initial_warm_start,
  is_placeholder,
  scores_are_finite,
  select,
  to_vector,
  warm_select,
)
from sparsejax.core import masks as find_masks
from sparsejax.distributions import uniform
from sparsejax.methods import init_scores
from sparsejax.transforms import effective, sparsify_forward


class SupermaskState(NamedTuple):
  """The optimizer state of a network whose masks are learned.

  Attributes:
    scores: the params' tree with what the masks follow from at the masked leaves, None
      elsewhere.
    sparse: the state of the scores' own optimizer, and the masks.
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
  """Finds a network inside random weights: scores are trained, weights never.

  e = w where |s| is among the best of its layer, else 0;  dL/ds := sign(s) w dL/de

  `sj.supermask` as an optimizer of the weights: the scores live in its state, and the
  loss takes its weights from `sj.effective(params, opt_state)`, as with
  `sj.straight_through`. The updates it emits leave every parameter as it is, bit for
  bit, biases too: a trained network is its seed and a mask (`save_supermask`). Use
  weights of `models.signed_kaiming_constant`, no biases, and batch normalization
  without scale and shift.

  The density matters in `init` alone: from then on the state's budgets say how many
  weights each layer keeps, so states of other densities, of `sj.with_masks` too, are
  trained by one compiled program.

  Args:
    inner: any optax optimizer, of the scores.
    density: fraction of weights kept, in (0, 1).
    distribution: of the live weights over the layers.
    where: which leaves are masked; see `sparsify`.
    seed: of the first scores, an integer that may be traced.
    update_every: steps between mask updates; see `sparsify`.
    start_step: see `sparsify`.
    end_step: see `sparsify`.

  Returns:
    An optax transformation with a `SupermaskState`, in which `sj.masks` finds masks.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: density is not inside (0, 1); no leaf is selected.

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
  """An optimizer of scores as one of the weights, which it leaves as they are.

  dL/ds := slope(s) w dL/de

  Args:
    optimizer: of the scores; made by `sparsify_forward`.
    first_scores: `params -> scores`, None at leaves without.
    slope: `scores -> dm/ds`.

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
    # x + -0.0 is x for every float; x + 0.0 would lose the sign of -0.0.
    still = jax.tree.map(lambda u: -jnp.zeros_like(u), updates)
    return still, SupermaskState(scores, sparse)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def rescaled_effective(params: PyTree, opt_state: PyTree) -> PyTree:
  """`sj.effective` with Zhou et al.'s dynamic rescaling.

  e_l = (size_l / live_l) m_l w_l;  de/dw = size_l / live_l everywhere

  However many weights a mask keeps, the outputs of a layer stay as large on average.

  Args:
    params: any pytree of arrays.
    opt_state: as in `sj.effective`.

  Returns:
    The same container with the same dtypes; leaves without a mask unchanged, and so is
    a layer that has no live weight.

  Raises:
    ValueError: structures or shapes differ; there is no sparsified optimizer.

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
  leaves, treedef = jax.tree.flatten(effective(params, opt_state))
  entries = align(params, find_masks(opt_state), strict=False)

  def scaled(weight, mask):
    if mask is None:
      return weight
    live = jnp.maximum(count(mask), 1).astype(jnp.float32)
    return weight * (jnp.float32(mask.size) / live).astype(weight.dtype)

  both = zip(leaves, entries, strict=True)
  return treedef.unflatten(scaled(w, m) for w, m in both)


def check_kept(density: Any) -> None:
  """Raises unless `density` is a number inside (0, 1)."""
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


# A score moves little in a step, and so does what the best begin at.
_BEST = MaskTransform(
  lambda params: initial_warm_start(len(jax.tree.leaves(params))), _best
)
