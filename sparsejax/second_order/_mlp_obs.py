"""Layer-wise OBS for a whole MLP, with one budget for all its layers.

A neuron's Gauss-Newton block, `mean_i s_i x_i x_i^T` with `s` its output sensitivity,
is approximated by `mean(s) * mean_i x_i x_i^T`. The neurons of a layer then share one
inverse, and the rises of all rows are in units of the network's loss, so that they can
be compared between layers.

The bias is never deleted, so it takes part in the compensation. With the optimal bias
for given weights, the loss is a quadratic in the centered inputs:

  min_b mean ((v - w) x + b - b_0)^2 = (v - w) cov(x) (v - w)^T,
  b = b_0 + (w - v) mean(x)

Without this, deleting weights on nonnegative inputs would shift the mean of every
output.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.core import apportion, check_finite
from sparsejax.scores import dense_layers, mlp_factors
from sparsejax.second_order import _compensation, _layerwise_obs
from sparsejax.second_order._prune_retrain import Pruned, keep_best


class Prepared(NamedTuple):
  """Statistics of a network that `prune` uses for any number of densities.

  There is one entry per layer, in order. Kernels are `(in, out)`, as in the params.
  """

  hessians: list[jax.Array]  # (in, in), covariance of the inputs x
  means: list[jax.Array]  # (in,), mean of x
  scores: list[jax.Array]  # (in, out), higher scores are kept
  rises: list[
    jax.Array
  ]  # (in, out), the rise of the loss when a weight is deleted, in its turn


def prepare(
  params: Any,
  inputs: jax.Array,
  *,
  loss: str = "softmax",
  activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
  damping: float = 0.01,
  batch_size: int = 16,
) -> Prepared:
  """Runs ExactOBS on every row of every layer, until no weights are left.

  Args:
    params: dense layers as for `mlp_factors`.
    inputs: float array `(n, fan_in)`, training examples.
    loss: "softmax" or "squared".
    activation: the elementwise function between layers.
    damping: fraction of the mean diagonal added to each Hessian's diagonal.
    batch_size: the number of rows computed at a time.

  Returns:
    `Prepared`, to be passed to `prune`.

  Raises:
    ValueError: `params` contains a layer that is not dense; `inputs`, a layer's params
      or its Hessian are not finite (under `jit`, see `deletion_order`).

  Example:
    >>> layer = {"kernel": jnp.array([[1.0], [4.0]]), "bias": jnp.zeros(1)}
    >>> x = jnp.array([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 2.0]])
    >>> prepared = prepare([layer], x, loss="squared", damping=0.0)
    >>> [[round(x, 3) for x in row] for row in prepared.rises[0].tolist()]
    [[0.5], [8.0]]

  Reference: Frantar and Alistarh, Optimal brain compression (2022), Algorithm 1 and
  section 4. The sensitivities are not part of the paper.
  """
  layers = dense_layers(params)
  names = sorted(params) if isinstance(params, Mapping) else range(len(layers))
  check_finite("inputs", inputs)
  for name, layer in zip(names, layers, strict=True):
    for part, value in layer.items():
      check_finite(f"params[{name!r}][{part!r}]", value)
  dtype = _compensation.statistics_dtype(inputs, *jax.tree.leaves(layers))
  layers = jax.tree.map(lambda x: x.astype(dtype), layers)
  inputs = inputs.astype(dtype)
  factors = mlp_factors(layers, inputs, loss=loss, activation=activation)
  # Per layer: the covariance of its inputs, and each row's deletion order.
  hessians, means, scores, rises = [], [], [], []
  for name, layer, (x, s) in zip(names, layers, factors, strict=True):
    mean = jnp.mean(x, 0) if "bias" in layer else jnp.zeros_like(x[0])
    centred = x - mean[None]
    hessian = centred.T @ centred / x.shape[0]
    check_finite(f"the Hessian of params[{name!r}]", hessian)
    order = _layerwise_obs.deletion_order(
      layer["kernel"].T, hessian, damping=damping, batch_size=batch_size
    )
    # Multiply by the neurons' mean sensitivities, for rises in units of the loss.
    order = order._replace(rise=order.rise * jnp.mean(s, 0)[:, None])
    hessians.append(hessian)
    means.append(mean)
    scores.append(_layerwise_obs.order_scores(order).T)
    # Sort the rises from the order of deletion back to the order of the weights.
    empty = jnp.zeros_like(order.rise)
    rise = jax.vmap(lambda e, i, r: e.at[i].set(r))(empty, order.index, order.rise)
    rises.append(rise.T)
  return Prepared(hessians, means, scores, rises)


def prune(
  params: Any,
  prepared: Prepared,
  live: jax.Array | int,
  *,
  uniform: bool = False,
  damping: float = 0.01,
) -> Pruned:
  """Prunes a network to `live` kernel weights and compensates the kept ones.

  Args:
    params: as given to `prepare`. Biases are never deleted; they are compensated.
    prepared: from `prepare`.
    live: the number of kernel weights to keep, an integer, possibly traced.
    uniform: whether to use the same density in every layer, with remainders by the
      largest-remainder method, instead of one ranking of all weights of the network.
    damping: as in `prepare`.

  Returns:
    `Pruned`: params like `params`, masks `{"kernel": mask}` per layer, and the
    predicted rise of the loss.

  Example:
    >>> layer = {"kernel": jnp.array([[1.0], [4.0]]), "bias": jnp.zeros(1)}
    >>> x = jnp.array([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 2.0]])
    >>> prepared = prepare([layer], x, loss="squared", damping=0.0)
    >>> pruned = prune([layer], prepared, 1, damping=0.0)
    >>> pruned.params[0]["kernel"].tolist(), pruned.params[0]["bias"].tolist()
    ([[0.0], [4.0]], [1.0])
    >>> float(pruned.predicted)
    0.5
  """
  # Choose which weights stay, from the scores of `prepare`.
  layers = dense_layers(params)
  every = [jnp.ones(s.shape, bool) for s in prepared.scores]
  if uniform:
    sizes = jnp.array([s.size for s in prepared.scores], jnp.int32)
    shares = apportion(sizes, live, sizes)
    masks = [
      keep_best(score, where, share)
      for score, where, share in zip(prepared.scores, every, shares, strict=True)
    ]
  else:
    masks = keep_best(prepared.scores, every, live)
  # Compensate the live weights and the biases for all deletions at once.
  kernels = [
    _compensation.compensate(layer["kernel"].T, h, m.T, damping=damping).T
    for layer, h, m in zip(layers, prepared.hessians, masks, strict=True)
  ]
  new = [
    with_kernel(layer, k, mean)
    for layer, k, mean in zip(layers, kernels, prepared.means, strict=True)
  ]
  tree = [{"kernel": m} for m in masks]
  predicted = sum(
    jnp.sum(jnp.where(m, 0, r)) for m, r in zip(masks, prepared.rises, strict=True)
  )
  if isinstance(params, Mapping):
    names = sorted(params)
    new = dict(zip(names, new, strict=True))
    tree = dict(zip(names, tree, strict=True))
  return Pruned(new, tree, jnp.asarray(predicted))


def with_kernel(layer: Mapping[str, jax.Array], kernel: jax.Array, mean: jax.Array):
  """Replaces a layer's kernel and adapts its bias.

  `b = b_0 + (w - v)^T mean(x)`: the layer's outputs keep their mean.

  Args:
    layer: `{"kernel": w, "bias": b_0}`, w of shape `(in, out)`; the bias may be absent.
    kernel: v, `(in, out)`.
    mean: `(in,)`, the mean of the layer's inputs.

  Returns:
    A layer like `layer`; a layer without a bias gets a new kernel only.

  Example:
    >>> layer = {"kernel": jnp.array([[1.0], [4.0]]), "bias": jnp.zeros(1)}
    >>> new = with_kernel(layer, jnp.array([[0.0], [4.0]]), jnp.array([1.0, 1.0]))
    >>> new["bias"].tolist()
    [1.0]
  """
  new = {**layer, "kernel": kernel}
  if "bias" in layer:
    # In the dtype of the mean, so that rounding of the kernel is compensated too.
    bias, old = layer["bias"].astype(mean.dtype), layer["kernel"].astype(mean.dtype)
    bias = bias + (old - kernel.astype(mean.dtype)).T @ mean
    new["bias"] = bias.astype(layer["bias"].dtype)
  return new
