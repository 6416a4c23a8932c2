"""One-shot pruning methods: their scores, and the pruning of one layer.

A layer has one matrix per group, `(groups, outputs, inputs)`. Rows are neurons, so a
matrix is the transpose of a Dense kernel. Weights with higher scores are kept.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.core import top_k_mask
from sparsejax.core.structures import Structure
from sparsejax.post_training._statistics import InputStatistics
from sparsejax.second_order import (
  compensate,
  damped,
  deletion_order,
  order_scores,
  solve_live,
  sparse_gpt,
)

Array = jax.Array
Score = Callable[[Array, InputStatistics], Array]


def magnitude(weights: Array, statistics: InputStatistics) -> Array:
  """Computes `|w_ij|`, which does not depend on the inputs.

  Args:
    weights: float array `(groups, outputs, inputs)`.
    statistics: statistics of the layer's inputs; not used.

  Returns:
    Float array like `weights`; higher scores are kept.

  Example:
    >>> magnitude(jnp.array([[[-2.0, 1.0]]]), None).tolist()
    [[[2.0, 1.0]]]
  """
  del statistics
  return jnp.abs(weights)


def wanda(weights: Array, statistics: InputStatistics) -> Array:
  """Computes Wanda's score, the magnitude of a weight times the norm of its input.

  s_ij = |w_ij| ||x_j||_2

  Wanda ranks the weights within each output: `group="output"`.

  Args:
    weights: float array `(groups, outputs, inputs)`.
    statistics: statistics of the layer's inputs.

  Returns:
    Float array like `weights`; higher scores are kept.

  Reference: Sun et al., A simple and effective pruning approach for large language
  models (2023), eq. 1.

  Example:
    >>> seen = InputStatistics(1, jnp.array([[1.0, 9.0]]), None)
    >>> wanda(jnp.array([[[-2.0, 1.0]]]), seen).tolist()
    [[[2.0, 3.0]]]
  """
  return jnp.abs(weights) * statistics.norms[:, None].astype(weights.dtype)


def ria(weights: Array, statistics: InputStatistics, power: float = 0.5) -> Array:
  """Computes RIA's score: relative importance times a power of the input's norm.

  s_ij = (|w_ij| / sum_k |w_kj| + |w_ij| / sum_k |w_ik|) ||x_j||_2^power

  The sums run over a weight's column and row. RIA ranks all weights of a layer.

  Args:
    weights: float array `(groups, outputs, inputs)`.
    statistics: statistics of the layer's inputs.
    power: the power of the norm.

  Returns:
    Float array like `weights`; higher scores are kept.

  Reference: Zhang et al., Plug-and-play: an efficient post-training pruning method for
  large language models (2024), eqs. 3 and 4.

  Example:
    >>> seen = InputStatistics(1, jnp.array([[1.0, 16.0]]), None)
    >>> ria(jnp.array([[[-3.0, 1.0]]]), seen).tolist()
    [[[1.75, 2.5]]]
  """
  size = jnp.abs(weights)
  tiny = jnp.finfo(size.dtype).tiny
  share = lambda axis: size / jnp.maximum(jnp.sum(size, axis, keepdims=True), tiny)
  norms = statistics.norms[:, None].astype(size.dtype)
  return (share(-2) + share(-1)) * norms**power


def obs(weights: Array, statistics: InputStatistics, damping: float = 0.01) -> Array:
  """Computes scores for which any threshold deletes a prefix of OBS's deletion order.

  Each output has an order of its own; see `second_order.order_scores`.

  Args:
    weights: float array `(groups, outputs, inputs)`.
    statistics: statistics of the layer's inputs, with Gram matrices.
    damping: fraction of the mean diagonal added to the Hessian's diagonal.

  Returns:
    Float array like `weights`; higher scores are kept.

  Reference: Frantar and Alistarh, Optimal brain compression (2022), Algorithm 1.

  Example:
    >>> gram = jnp.array([[[1.0, 0.5], [0.5, 1.0]]])
    >>> seen = InputStatistics(1, jnp.ones((1, 2)), gram)
    >>> [round(s, 3) for s in obs(jnp.array([[[1.0, 4.0]]]), seen, 0.0)[0, 0].tolist()]
    [0.75, 20.25]
  """
  hessian = statistics.hessian.astype(weights.dtype)
  one = lambda w, h: order_scores(deletion_order(w, h, damping=damping))
  return jax.vmap(one)(weights, hessian)


class Method(NamedTuple):
  """The properties of a pruning method."""

  score: Score | None  # None for SparseGPT, which computes scores while it prunes
  group: str  # weights are ranked within each "output", or over the "layer"
  compensates: bool  # whether the kept weights are compensated
  reads_gram: bool  # whether the score needs Gram matrices


METHODS = {
  "magnitude": Method(magnitude, "layer", False, False),
  "wanda": Method(wanda, "output", False, False),
  "ria": Method(ria, "layer", False, False),
  "obs": Method(obs, "layer", True, True),
  "sparse_gpt": Method(None, "layer", True, True),
}


class Settings(NamedTuple):
  """The settings for pruning one layer; hashable, as `jax.jit` requires."""

  method: Method
  structure: Structure | None
  damping: float
  block: int


class Result(NamedTuple):
  """The result of pruning one layer."""

  weights: Array  # (groups, outputs, inputs), exactly 0.0 where masked
  mask: Array  # bool, like weights, True = live
  masked_error: Array  # relative squared error of the outputs without compensation
  error: Array  # relative squared error of the outputs with the returned weights


@functools.partial(jax.jit, static_argnames=("settings", "live"))
def prune_matrix(
  weights: Array,
  statistics: InputStatistics,
  live: int,
  settings: Settings,
  cross: Array | None = None,
) -> Result:
  """Prunes one layer to `live` weights.

  Args:
    weights: float array `(groups, outputs, inputs)`.
    statistics: statistics of the layer's inputs.
    live: the number of weights to keep.
    settings: the method and its settings.
    cross: `(groups, inputs, inputs)`, the sum of `x y^T`, with x the dense network's
      inputs of the layer and y those of `statistics`. If given, the kept weights are
      fitted to the dense network's outputs.

  Returns:
    A `Result`; errors are NaN without Gram matrices.
  """
  method, structure = settings.method, settings.structure
  # The Hessian of the layer; None if no method needs it.
  hessian: Any = None
  exact: Any = None
  if statistics.gram is not None:
    exact = hessian = statistics.hessian.astype(weights.dtype)
    # If all inputs are zero, use the identity instead, so that scores and compensation
    # stay defined. `exact` keeps the true Hessian for the errors.
    empty = jnp.trace(hessian, axis1=-2, axis2=-1)[:, None, None] <= 0
    eye = jnp.eye(hessian.shape[-1], dtype=hessian.dtype)
    hessian = jnp.where(empty, eye[None], hessian)
    gram = jnp.where(empty, eye[None], statistics.gram.astype(weights.dtype))
    statistics = statistics._replace(gram=gram)
  if method.score is None and (structure is None or structure.group is not None):
    # SparseGPT selects and compensates column by column, one group at a time.
    each = _shares(live, weights.shape[0])
    one = lambda w, h, k: sparse_gpt(
      w,
      h,
      live=k,
      n_m=None if structure is None else structure.group,
      block=settings.block,
      damping=settings.damping,
    )
    pairs = zip(weights, hessian, each, strict=True)
    new, mask = (
      jnp.stack(part) for part in zip(*(one(*p) for p in pairs), strict=True)
    )
  else:
    # Otherwise: compute scores, select the mask, compensate the kept weights.
    if method.score is None:
      scores = _block_scores(weights, hessian, settings.damping)
    elif method.score is obs:
      scores = obs(weights, statistics, settings.damping)
    else:
      scores = method.score(weights, statistics)
    mask = _select(scores, live, method.group, structure)
    new = jnp.where(mask, weights, 0)
    if method.compensates:
      one = lambda w, h, m: compensate(w, h, m, damping=settings.damping)
      new = jax.vmap(one)(weights, hessian, mask)
  # Fit the kept weights to the dense network's outputs, if asked for, and measure the
  # errors of the masked and of the returned weights.
  masked = jnp.where(mask, weights, 0)
  if cross is not None:
    count = jnp.maximum(jnp.asarray(statistics.count, weights.dtype), 1)
    cross = cross.astype(weights.dtype) * (2 / count)
    fit = functools.partial(_fit, damping=settings.damping)
    # Where all inputs are zero, nothing can be fitted.
    new = jnp.where(empty, masked, jax.vmap(fit)(weights, hessian, cross, mask))
  errors = [_error(exact, weights, v) for v in (masked, new)]
  return Result(new, mask, *errors)


def _fit(weights, hessian, cross, mask, damping):
  """Computes the live weights v that minimize `||Y v^T - X w^T||^2`, damped towards w.

  `H_LL (v - w)_L = (w C - (w m) H)_L`, with C the sum of `x y^T`, H that of `y y^T`.
  """
  kept = jnp.where(mask, weights, 0)
  product = lambda a, b: jnp.matmul(a, b, precision="highest")
  lost = product(weights, cross) - product(kept, hessian)
  return kept + solve_live(damped(hessian, damping), lost, mask)


def _block_scores(weights: Array, hessian: Array, damping: float) -> Array:
  """Computes OBS's saliency `w^2 / [H^-1]_ii` of deleting each weight alone."""
  inverse = jnp.linalg.inv(damped(hessian, damping))
  diagonal = jnp.diagonal(inverse, axis1=-2, axis2=-1)[:, None]
  return weights**2 / jnp.maximum(diagonal, jnp.finfo(diagonal.dtype).tiny)


def _select(scores: Array, live: int, group: str, structure: Structure | None):
  if structure is not None:
    # Structures take Dense kernels, `(inputs, outputs)` or `(groups, inputs, outputs)`.
    scores = jnp.swapaxes(scores, -1, -2)
    if scores.shape[0] == 1:
      scores = scores[0]
    mask = structure.select(
      [scores], [jnp.int32(live)], [jnp.ones(scores.shape, bool)]
    )[0]
    mask = jnp.swapaxes(mask, -1, -2)
    return mask[None] if mask.ndim == 2 else mask
  if group == "layer":
    return top_k_mask(scores, live)
  rows = scores.reshape(-1, scores.shape[-1])
  counts = jnp.asarray(_shares(live, rows.shape[0]), jnp.int32)
  return jax.vmap(top_k_mask)(rows, counts).reshape(scores.shape)


def _shares(live: int, parts: int) -> list[int]:
  """Divides `live` equally; the first parts get one more each for the remainder."""
  return [live // parts + (i < live % parts) for i in range(parts)]


def _error(hessian: Any, old: Array, new: Array) -> Array:
  """Computes `||X (w - v)^T||^2 / ||X w^T||^2`, over all outputs; NaN if unknown."""
  if hessian is None:
    return jnp.asarray(jnp.nan, old.dtype)
  size = lambda w: jnp.einsum("goi,gij,goj->", w, hessian, w, precision="highest")
  whole = size(old)
  return jnp.where(whole > 0, jnp.maximum(size(new - old), 0) / whole, 0)
