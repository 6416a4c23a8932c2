"""Diagonals of the Gauss-Newton matrix: for any network, and in closed form for MLPs.

The Gauss-Newton matrix is `G = mean_i J_i^T S_i J_i`, where `J_i` is the Jacobian of
the network's outputs and `S_i` the Hessian of the loss with respect to the outputs. It
is the Hessian without the curvature of the network. It is positive semidefinite, and
equal to the Hessian where the outputs are linear in the weights.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.core import widened
from sparsejax.scores._hessian import sum_over_examples

Params = Any
_LOSSES = ("softmax", "squared")


def output_factors(outputs: jax.Array, loss: str = "softmax") -> jax.Array:
  """Factorizes the Hessian of the loss in the outputs as `sum_c s_c s_c^T`.

  `softmax` (cross-entropy on logits): `s_c = sqrt(p_c) (e_c - p)`.
  `squared` (half the squared error): `s_c = e_c`.

  Args:
    outputs: float array `(..., classes)`, the logits or predictions.
    loss: "softmax" or "squared".

  Returns:
    Float array `(classes, ..., classes)`, the columns `s_c` along the first axis.

  Raises:
    ValueError: `loss` is neither.

  Example:
    >>> s = output_factors(jnp.zeros(2))
    >>> jnp.round(s.T @ s, 4).tolist()
    [[0.25, -0.25], [-0.25, 0.25]]

  Reference: Schraudolph, Fast curvature matrix-vector products (2002), section 3.
  """
  if loss not in _LOSSES:
    raise ValueError(f"loss must be one of {_LOSSES}, got {loss!r}.")
  classes = outputs.shape[-1]
  basis = jnp.eye(classes, dtype=outputs.dtype)
  basis = basis.reshape(classes, *(1,) * (outputs.ndim - 1), classes)
  if loss == "squared":
    return jnp.broadcast_to(basis, (classes, *outputs.shape))
  p = jax.nn.softmax(outputs)
  weight = jnp.sqrt(jnp.moveaxis(p, -1, 0))[..., None]
  return weight * (basis - p[None])


def gauss_newton_diagonal(
  apply: Callable[[Params, jax.Array], jax.Array],
  params: Params,
  inputs: jax.Array,
  *,
  loss: str = "softmax",
  batch_size: int = 8,
) -> Params:
  """Computes the diagonal of the Gauss-Newton matrix of any network.

  `diag(G) = mean_i sum_c (J_i^T s_ic)^2`: one backward pass per example and class. For
  an MLP, `mlp_gauss_newton_diagonal` gives the same in a thousandth of the time.

  Args:
    apply: `(params, inputs (b, ...)) -> outputs (b, classes)`.
    params: pytree of float arrays.
    inputs: float array `(n, ...)`.
    loss: "softmax" or "squared", see `output_factors`.
    batch_size: how many examples are differentiated at a time.

  Returns:
    A pytree like `params`, non-negative; float32 for 16-bit params.

  Raises:
    ValueError: `loss` is unknown, or `batch_size` is below 1.

  Example:
    >>> apply = lambda w, x: x @ w
    >>> x = jnp.array([[1.0, 2.0]])
    >>> gauss_newton_diagonal(apply, jnp.zeros((2, 1)), x, loss="squared").tolist()
    [[1.0], [4.0]]

  Reference: Martens, New insights and perspectives on the natural gradient method
  (2020), section 8.1.
  """
  if batch_size < 1:
    raise ValueError(f"batch_size must be at least 1, got {batch_size}.")

  def one_example(example):
    outputs, pullback = jax.vjp(lambda p: apply(p, example[None])[0], params)
    (columns,) = jax.vmap(pullback)(output_factors(outputs, loss))
    return jax.tree.map(lambda g: jnp.sum(widened(g) ** 2, 0), columns)

  squares = sum_over_examples(one_example, params, inputs, batch_size)
  return jax.tree.map(lambda s: s / inputs.shape[0], squares)


class LayerFactors(NamedTuple):
  """The factors of the Gauss-Newton matrix of one dense layer.

  The block of neuron `j` is `mean_i sensitivities[i, j] * outer(inputs[i], inputs[i])`.
  """

  inputs: jax.Array  # (n, fan_in)
  sensitivities: jax.Array  # (n, fan_out), sum over classes of squared deltas


def mlp_factors(
  params: Any,
  inputs: jax.Array,
  *,
  loss: str = "softmax",
  activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
) -> list[LayerFactors]:
  """Computes inputs and squared output sensitivities of each dense layer of an MLP.

  Args:
    params: dense layers `{"kernel": (in, out), "bias": (out,)}` in order, as a sequence
      or as a mapping whose sorted keys are the order. A bias may be missing.
    inputs: float array `(n, fan_in)`.
    loss: "softmax" or "squared".
    activation: the elementwise function between layers.

  Returns:
    One `LayerFactors` per layer.

  Raises:
    ValueError: `params` holds something that is not a dense layer.

  Example:
    >>> layer = {"kernel": jnp.ones((2, 1)), "bias": jnp.zeros(1)}
    >>> factors = mlp_factors([layer], jnp.array([[1.0, 2.0]]), loss="squared")
    >>> factors[0].sensitivities.tolist()
    [[1.0]]
  """
  # Forward pass, which keeps the inputs of each layer and the activations' slopes.
  layers = dense_layers(params)
  hidden, slopes, z = [inputs], [], inputs
  for i, layer in enumerate(layers):
    z = hidden[-1] @ layer["kernel"]
    if "bias" in layer:
      z = z + layer["bias"][None]
    if i < len(layers) - 1:
      value, slope = jax.jvp(activation, (z,), (jnp.ones_like(z),))
      hidden.append(value)
      slopes.append(slope)

  # Backward pass of one column s_c; the squared signals are summed over the classes.
  def add(totals, delta):
    new = []
    for i in range(len(layers) - 1, -1, -1):
      new.append(totals[i] + delta**2)
      if i:
        delta = (delta @ layers[i]["kernel"].T) * slopes[i - 1]
    return tuple(reversed(new)), None

  totals = (*(jnp.zeros_like(s) for s in slopes), jnp.zeros_like(z))
  totals, _ = jax.lax.scan(add, totals, output_factors(z, loss))
  return [LayerFactors(x, s) for x, s in zip(hidden, totals, strict=True)]


def mlp_gauss_newton_diagonal(
  params: Any,
  inputs: jax.Array,
  *,
  loss: str = "softmax",
  activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
) -> Any:
  """Computes the exact Gauss-Newton diagonal of an MLP, with one product per layer.

  `diag(G)_kernel = mean_i x_i^2 (sum_c delta_ic^2)^T`, where `x` are the inputs of a
  layer and `delta_ic` is `s_c` propagated back to its outputs. The squares are summed
  over classes before the product with the inputs.

  Args:
    params: as for `mlp_factors`.
    inputs: float array `(n, fan_in)`.
    loss: "softmax" or "squared".
    activation: the elementwise function between layers.

  Returns:
    A pytree like `params`, non-negative.

  Raises:
    ValueError: `params` holds something that is not a dense layer.

  Example:
    >>> layer = {"kernel": jnp.ones((2, 1)), "bias": jnp.zeros(1)}
    >>> x = jnp.array([[1.0, 2.0]])
    >>> mlp_gauss_newton_diagonal([layer], x, loss="squared")[0]["kernel"].tolist()
    [[1.0], [4.0]]

  Reference: LeCun, Denker and Solla, Optimal brain damage (1990), Eqs. 5-8, with the
  loss's full output Hessian.
  """
  factors = mlp_factors(params, inputs, loss=loss, activation=activation)
  diagonals = []
  for layer, (x, s) in zip(dense_layers(params), factors, strict=True):
    diagonal = {"kernel": (x**2).T @ s / x.shape[0]}
    if "bias" in layer:
      diagonal["bias"] = jnp.mean(s, 0)
    diagonals.append(diagonal)
  if isinstance(params, Mapping):
    return dict(zip(sorted(params), diagonals, strict=True))
  return diagonals


def dense_layers(params: Any) -> list[Mapping[str, jax.Array]]:
  """Lists the dense layers of an MLP in order; keys of a mapping are sorted.

  Example:
    >>> layer = {"kernel": jnp.ones((2, 1))}
    >>> len(dense_layers({"Dense_0": layer, "Dense_1": layer}))
    2
  """
  names = sorted(params) if isinstance(params, Mapping) else range(len(params))
  for name in names:
    layer = params[name]
    kernel = layer.get("kernel") if isinstance(layer, Mapping) else None
    if kernel is None or kernel.ndim != 2:
      raise ValueError(
        "params must contain dense layers {'kernel': (in, out), 'bias': (out,)}, got"
        f" {name!r}: {jax.tree.map(jnp.shape, layer)}."
      )
  return [params[name] for name in names]
