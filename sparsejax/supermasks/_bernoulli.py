"""Supermasks that are drawn at every step, with learned probabilities."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.core import (
  MaskTransform,
  PyTree,
  Where,
  check_key,
  choose,
  count,
  leaf_keys,
  scores_are_finite,
  selected,
  uniform_like,
)
from sparsejax.supermasks._edge_popup import check_kept, frozen
from sparsejax.transforms import sparsify_forward


def bernoulli_supermask(
  inner: optax.GradientTransformation,
  density: float = 0.5,
  *,
  where: Where = None,
  seed: Any = 0,
  update_every: int | None = 1,
  start_step: int = 0,
  end_step: int | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Learns the probability with which each random weight is used; weights are fixed.

  m ~ Bernoulli(sigmoid(v));  e = m w;  dL/dv := sigmoid'(v) w dL/de

  The number of live weights is learned too, and varies slightly between draws. Compute
  the loss with the weights `rescaled_effective(params, opt_state)` (dynamic rescaling)
  or `sj.effective(params, opt_state)`. Gradients of v are small: the authors train
  LeNet-300-100 by SGD with a learning rate of 100.

  Args:
    inner: any optax optimizer; it updates v.
    density: the initial probability that a weight is live, in (0, 1).
    where: selects the leaves to mask; see `sparsify`.
    seed: the seed of the draws, an integer that may be traced.
    update_every: steps between draws; see `sparsify`.
    start_step: see `sparsify`.
    end_step: see `sparsify`.

  Returns:
    An optax transformation with a `SupermaskState` whose scores are v.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: density is not inside (0, 1), or no leaf is selected.

  References:
    Zhou et al. 2019, "Deconstructing lottery tickets: zeros, signs, and the supermask",
    section 5.1.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> params = {"kernel": jnp.ones((64, 64)), "bias": jnp.zeros(64)}
    >>> state = bernoulli_supermask(optax.sgd(100.0), density=0.25).init(params)
    >>> bool(abs(sj.masks(state)["kernel"].mean() - 0.25) < 0.05)
    True
  """
  check_kept(density)
  logit = math.log(density / (1 - density))

  def first(params):
    kernels = choose(params, selected(params, where))
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, logit), kernels)

  def slope(logits):
    return jax.tree.map(lambda v: jax.nn.sigmoid(v) * jax.nn.sigmoid(-v), logits)

  optimizer = sparsify_forward(
    inner,
    _DRAW,
    density,
    where=lambda path, leaf: True,
    seed=seed,
    update_every=update_every,
    start_step=start_step,
    end_step=end_step,
  )
  return frozen(optimizer, first, slope)


def bernoulli_masks(logits: PyTree, key: jax.Array) -> PyTree:
  """Draws a mask for every leaf.

  m ~ Bernoulli(sigmoid(v))

  Args:
    logits: v, a tree of float arrays.
    key: a PRNG key; each leaf gets a key derived from it.

  Returns:
    A tree of bool arrays like `logits`, True = live.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> bernoulli_masks({"kernel": jnp.array([-99.0, 99.0])}, jax.random.key(0))
    {'kernel': Array([False,  True], dtype=bool)}
  """
  check_key("key", key)
  leaves, treedef = jax.tree.flatten(logits)
  keys = leaf_keys(key, logits)
  return treedef.unflatten(
    uniform_like(k, v) < jax.nn.sigmoid(v.astype(jnp.float32))
    for k, v in zip(keys, leaves, strict=True)
  )


def _draw(inputs, topology, state):
  masks = bernoulli_masks(inputs.params, inputs.key)
  budgets = jax.tree.map(
    lambda m, b: count(m).astype(b.dtype).reshape(b.shape), masks, topology.budgets
  )
  everything = jax.tree.map(jnp.ones_like, masks)
  finite = topology.finite & scores_are_finite(inputs.params, everything)
  return topology._replace(masks=masks, budgets=budgets, finite=finite), state


_DRAW = MaskTransform(lambda params: (), _draw)
