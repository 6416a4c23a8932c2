"""Soft threshold weight reparametrization (STR, Kusupati et al. 2020)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core import PyTree, Where, check_arrays, check_number, choose, selected


def soft_threshold(params: PyTree, thresholds: PyTree) -> PyTree:
  """Shrinks weights by learned thresholds for the forward pass (STR).

  e = sign(w) relu(|w| - sigmoid(s_l))

  Call it inside the loss and differentiate with respect to both arguments. Masked
  weights get a zero gradient, and each live weight adds -sign(w) sigmoid'(s_l) dL/de to
  the gradient of s_l. The density is learned: the weight decay of the weights and of s
  determines it.

  Args:
    params: any pytree of arrays.
    thresholds: the tree s from `init_thresholds`, trained by the same optimizer.

  Returns:
    The effective weights, a tree like `params` with the same dtypes; leaves without a
    threshold are unchanged.

  Raises:
    ValueError: the structures differ.

  References:
    Kusupati et al. 2020, "Soft threshold weight reparameterization for learnable
    sparsity", eq. 3-5.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj
    >>> params = {"kernel": jnp.array([[2.0, -0.75, 0.25]])}
    >>> thresholds = sj.init_thresholds(params, 0.0)  # sigmoid(0) = 0.5
    >>> sj.soft_threshold(params, thresholds)["kernel"]
    Array([[ 1.5 , -0.25,  0.  ]], dtype=float32)
  """
  return _map(_shrink, params, thresholds)


def soft_threshold_masks(params: PyTree, thresholds: PyTree) -> PyTree:
  """Returns the masks given by learned thresholds.

  m = |w| > sigmoid(s_l)

  Args:
    params: any pytree of arrays.
    thresholds: as in `soft_threshold`.

  Returns:
    A tree of masks like that of `sj.masks`: bool arrays at the leaves with a threshold,
    None elsewhere. The trained network is `sj.soft_threshold(params, thresholds)`,
    whose live weights are smaller in magnitude than those in `params`.

  Raises:
    ValueError: the structures differ.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj
    >>> params = {"kernel": jnp.array([[2.0, -0.75, 0.25]])}
    >>> sj.soft_threshold_masks(params, sj.init_thresholds(params, 0.0))["kernel"]
    Array([[ True,  True, False]], dtype=bool)
  """
  return _map(lambda w, s: jnp.abs(w) > _level(w, s), params, thresholds, dense=False)


def init_thresholds(
  params: PyTree, initial: float = -5.0, where: Where = None
) -> PyTree:
  """Returns an initial threshold for every sparsified leaf.

  s_l = initial, the threshold sigmoid(initial)

  Args:
    params: any pytree of arrays.
    initial: initial s; the lower, the longer training stays dense. The paper's values
      are so low (-200 and below) that at first only weight decay raises them.
    where: which leaves are sparsified; see `sparsify`.

  Returns:
    A tree like `params` with a scalar of the leaf's dtype at each sparsified leaf and
    None elsewhere.

  Raises:
    TypeError: `where` has the wrong type or selects a leaf that is not floating point.
    ValueError: no leaf is selected.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj
    >>> sj.init_thresholds({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)})
    {'bias': None, 'kernel': Array(-5., dtype=float32)}
  """
  check_number("initial", initial, "be finite", np.isfinite)
  kernels = choose(params, selected(params, where))
  return jax.tree.map(lambda leaf: jnp.full((), initial, leaf.dtype), kernels)


def _map(function: Any, params: PyTree, thresholds: PyTree, dense: bool = True):
  """Maps over the leaves with a threshold; others are kept if `dense`, else None."""
  check_arrays("params", params)
  check_arrays("thresholds", thresholds)
  leaves, treedef = jax.tree.flatten(params)
  try:
    entries = treedef.flatten_up_to(thresholds)
  except ValueError as e:
    raise ValueError(f"thresholds must have the params' structure: {e}") from None
  for s in jax.tree.leaves(entries):
    if s.shape:
      raise ValueError(f"thresholds must be scalars, got shape {s.shape}.")
  return treedef.unflatten(
    (w if dense else None) if s is None else function(w, s)
    for w, s in zip(leaves, entries, strict=True)
  )


def _level(weight: jax.Array, threshold: jax.Array) -> jax.Array:
  return jnp.broadcast_to(jax.nn.sigmoid(threshold), weight.shape)


def _shrink(weight: jax.Array, threshold: jax.Array) -> jax.Array:
  return jnp.sign(weight) * jax.nn.relu(jnp.abs(weight) - _level(weight, threshold))
