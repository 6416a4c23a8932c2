"""Scores of one-shot pruning methods, and what each method does with its scores.

A layer is a matrix per group, `(groups, outputs, inputs)`: rows are neurons, the
transpose of a Dense kernel. Higher = worth more, as everywhere.
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
  """Computes `|w_ij|`, which asks nothing of the inputs.

  Args:
    weights: float array `(groups, outputs, inputs)`.
    statistics: of the layer's inputs; not used.

  Returns:
    Float array like `weights`, higher = worth more.

  Example:
    >>> magnitude(jnp.array([[[-2.0, 1.0]]]), None).tolist()
    [[[2.0, 1.0]]]
  """
  del statistics
  return jnp.abs(weights)


def wanda(weights: Array, statistics: InputStatistics) -> Array:
  """Computes Wanda's score, a weight times the norm of its input.

  s_ij = |w_ij| ||x_j||_2

  Wanda compares the weights of one output with each other: `group="output"`.

  Args:
    weights: float array `(groups, outputs, inputs)`.
    statistics: of the layer's inputs.

  Returns:
    Float array like `weights`, higher = worth more.

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

  The sums run over a weight's column and row. RIA compares all weights of a layer.

  Args:
    weights: float array `(groups, outputs, inputs)`.
    statistics: of the layer's inputs.
    power: of the norm.

  Returns:
    Float array like `weights`, higher = worth more.

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
  """Computes scores that any threshold turns into a prefix of OBS's deletion order.

  Args:
    weights: float array `(groups, outputs, inputs)`.
    statistics: of the layer's inputs, with Gram matrices.
    damping: fraction of the mean diagonal added to the Hessian's diagonal.

  Returns:
    Float array like `weights`, higher = worth more.

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
  """What a method does: its score, whom it compares, whether it compensates."""

  score: Score | None  # None for SparseGPT, which scores as it prunes
  group: str  # "output" or "layer"
  compensates: bool
  reads_gram: bool


METHODS = {
  "magnitude": Method(magnitude, "layer", False, False),
  "wanda": Method(wanda, "output", False, False),
  "ria": Method(ria, "layer", False, False),
  "obs": Method(obs, "layer", True, True),
  "sparse_gpt": Method(None, "layer", True, True),
}


class Settings(NamedTuple):
  """How one layer is pruned; hashable, for `jax.jit`."""

  method: Method
  structure: Structure | None
  damping: float
  block: int


class Result(NamedTuple):
  """One layer, pruned."""

  weights: Array  # (groups, outputs, inputs), exactly 0.0 where dead
  mask: Array
  masked_error: Array  # relative squared error of the outputs without compensation
  error: Array  # the same of what was returned


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
    statistics: of its inputs.
    live: weights kept.
    settings: how.
    cross: `(groups, inputs, inputs)`, the sum of `x y^T`, x the dense network's inputs
      of the layer and y those of `statistics`: the weights kept are then fitted to
      the dense network's outputs.

  Returns:
    A `Result`; errors are NaN without Gram matrices.
  """
  method, structure = settings.method, settings.structure
  # None only where no method reads it.
  hessian: Any = None
  exact: Any = None
  if statistics.gram is not None:
    exact = hessian = statistics.hessian.astype(weights.dtype)
    # Inputs that are always zero say nothing: all weights count the same.
    empty = jnp.trace(hessian, axis1=-2, axis2=-1)[:, None, None] <= 0
    eye = jnp.eye(hessian.shape[-1], dtype=hessian.dtype)
    hessian = jnp.where(empty, eye[None], hessian)
    gram = jnp.where(empty, eye[None], statistics.gram.astype(weights.dtype))
    statistics = statistics._replace(gram=gram)
  if method.score is None and (structure is None or structure.group is not None):
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
  masked = jnp.where(mask, weights, 0)
  if cross is not None:
    count = jnp.maximum(jnp.asarray(statistics.count, weights.dtype), 1)
    cross = cross.astype(weights.dtype) * (2 / count)
    fit = functools.partial(_fit, damping=settings.damping)
    new = jax.vmap(fit)(weights, hessian, cross, mask)
  errors = [_error(exact, weights, v) for v in (masked, new)]
  return Result(new, mask, *errors)


def _fit(weights, hessian, cross, mask, damping):
  """The live weights v that minimize `||Y v^T - X w^T||^2`, damped towards w.

  `H_LL (v - w)_L = (w C - (w m) H)_L`, with C the sum of `x y^T`, H that of `y y^T`.
  """
  kept = jnp.where(mask, weights, 0)
  product = lambda a, b: jnp.matmul(a, b, precision="highest")
  lost = product(weights, cross) - product(kept, hessian)
  return kept + solve_live(damped(hessian, damping), lost, mask)


def _block_scores(weights: Array, hessian: Array, damping: float) -> Array:
  """OBS's saliency `w^2 / [H^-1]_ii` of each weight alone."""
  inverse = jnp.linalg.inv(damped(hessian, damping))
  diagonal = jnp.diagonal(inverse, axis1=-2, axis2=-1)[:, None]
  return weights**2 / jnp.maximum(diagonal, jnp.finfo(diagonal.dtype).tiny)


def _select(scores: Array, live: int, group: str, structure: Structure | None):
  if structure is not None:
    # A structure sees a Dense kernel, `(groups, inputs, outputs)`.
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
  """Equal shares; the remainder goes to the first, one weight each."""
  return [live // parts + (i < live % parts) for i in range(parts)]


def _error(hessian: Any, old: Array, new: Array) -> Array:
  """`||X (w - v)^T||^2 / ||X w^T||^2`, over all outputs."""
  if hessian is None:
    return jnp.asarray(jnp.nan, old.dtype)
  size = lambda w: jnp.einsum("goi,gij,goj->", w, hessian, w, precision="highest")
  whole = size(old)
  return jnp.where(whole > 0, jnp.maximum(size(new - old), 0) / whole, 0)
