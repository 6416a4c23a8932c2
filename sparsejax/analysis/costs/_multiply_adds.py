"""Counts multiply-adds from the jaxpr of a network, weighted by its masks."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from sparsejax.analysis.costs import _products
from sparsejax.analysis.jaxpr import _program
from sparsejax.core import align, apply_masks, path_string

PyTree = Any


class LayerCost(NamedTuple):
  """Cost of the products with one kernel, for one example."""

  multiply_adds: float  # of live weights
  dense: int  # of all weights
  live: int  # weights of the kernel; 0 of 0 where two activations are multiplied
  size: int

  @property
  def uses(self) -> int:
    """The number of times that one example uses each weight."""
    return self.dense // max(self.size, 1)


class Cost(NamedTuple):
  """Multiply-adds of the forward pass of one example.

  Attributes:
    layers: `{path of the kernel: LayerCost}`, in the order of computation.
  """

  layers: dict[str, LayerCost]

  @property
  def multiply_adds(self) -> float:
    """Multiply-adds of live weights."""
    return sum(layer.multiply_adds for layer in self.layers.values())

  @property
  def dense_multiply_adds(self) -> int:
    """Multiply-adds of all weights."""
    return sum(layer.dense for layer in self.layers.values())

  @property
  def flops(self) -> float:
    """Floating-point operations of live weights, two per multiply-add."""
    return 2 * self.multiply_adds

  @property
  def dense_flops(self) -> int:
    """Floating-point operations of all weights, two per multiply-add."""
    return 2 * self.dense_multiply_adds


def flops(
  apply_fn: Callable[[PyTree, Any], Any],
  params: PyTree,
  masks: PyTree | None,
  inputs: Any,
  *,
  skip_zeros: bool = False,
) -> Cost:
  """Counts the multiply-adds of dense and convolutional products with live weights.

  C = sum_l uses_l live_l,  flops = 2 C

  The count is for one example and follows NeST (Dai, Yin and Jha 2019), with two
  operations per multiply-add. Additions of biases, normalization, activations and
  pooling are free, and so are operations that only move data: lookups, and patches
  extracted by a product with zeros and ones (`flax.linen.ConvLocal`, `jax.nn.one_hot`).
  Borders count as image. Activations that are zero are counted unless `skip_zeros` is
  set. Products of parameters alone are computed once, not per example, and are free. In
  this count LeNet-300-100 takes 532,400 operations and LeNet-5 4,586,000.

  Kernels are followed from the parameters to the products, through reshapes, casts,
  `w * mask` and the like, so no layer needs to be registered. Nothing is computed
  unless zeros are skipped.

  Args:
    apply_fn: `(params, inputs) -> outputs`, such as `lambda params, x:
      model.apply({"params": params}, x)`.
    params: pytree of arrays, or of abstract values from `jax.eval_shape`.
    masks: the masks from `sj.masks`; None entries, or None, count as dense.
    inputs: arrays (or abstract values) with a leading axis of examples, of any dtype.
    skip_zeros: whether to count only products of two factors that are not zero,
      averaged over `inputs`. This is the work of a processor that skips zeros in
      weights, activations and borders. Needs values of `params` and `inputs`.

  Returns:
    A `Cost`, with the cost per layer and the totals.

  Raises:
    ValueError: the masks do not fit, or a loop's length or a branch depends on values.

  Example:
    >>> import jax.numpy as jnp
    >>> dense = lambda params, x: x @ params["w"] + params["b"][None]
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    >>> masks = {"w": jnp.array([[True, False]] * 3), "b": None}
    >>> cost = flops(dense, params, masks, jnp.ones((1, 3)))
    >>> cost.flops, cost.dense_flops, cost.layers["w"].live
    (6, 12, 3)
  """
  entries = align(params, masks, strict=False) if masks is not None else None
  flat = jax.tree_util.tree_leaves_with_path(params)
  # Trace the network for one example, and start from the masks of its parameters.
  one = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct((1, *np.shape(a)[1:]), a.dtype), inputs
  )
  program, _ = _program.trace(apply_fn, params, one)
  live, names, leaves = {}, {}, {}
  for i, (number, (path, leaf)) in enumerate(zip(program.params, flat, strict=True)):
    name = path_string(path)
    mask = None if entries is None else entries[i]
    mask = np.ones(1, bool) if mask is None else np.asarray(mask, bool)
    mask = np.broadcast_to(mask.reshape(mask.shape or (1,) * leaf.ndim), leaf.shape)
    live[number], names[number] = mask, (name,)
    leaves[name] = (int(np.count_nonzero(mask)), math.prod(leaf.shape))
  # Count every product; `found` is keyed by the product's output.
  found: dict[int, _products.Product] = {}
  _products.count(program, live, names, _program.varying(program), 1, found)
  happening = {}
  if skip_zeros:
    masked = params if masks is None else apply_masks(params, masks)
    happening = _products.nonzero(apply_fn, masked, inputs, program)
  layers: dict[str, LayerCost] = {}
  for number, product in found.items():
    counts = [leaves[name] for name in product.made_of if name in leaves]
    key = "*".join(product.made_of)
    before = layers.get(key, LayerCost(0, 0, 0, 0))
    layers[key] = LayerCost(
      before.multiply_adds + happening.get(number, product.multiply_adds),
      before.dense + product.dense,
      sum(live for live, _ in counts),
      sum(size for _, size in counts),
    )
  return Cost(layers)


def uses(model: Any, example: Any) -> dict[str, int]:
  """Counts how often one example uses each weight of a layer.

  uses_l = positions of the layer's output: 1 for a dense layer on vectors, out height
  x out width for a convolution (borders count as image).

  Args:
    model: a flax linen module.
    example: the shape of one image, such as (28, 28, 1), for float32; or an array or
      abstract value with a leading axis of examples, of any dtype, such as tokens.

  Returns:
    The count by the kernel's slash-separated path. Nothing is computed.

  Example:
    >>> from sparsejax import models
    >>> uses(models.LeNet5(), (28, 28, 1))["conv1/kernel"]
    576
    >>> tokens = jax.ShapeDtypeStruct((1, 16), "int32")
    >>> uses(models.Transformer(length=16), tokens)["mlp1/up/kernel"]
    16
  """
  if isinstance(example, tuple):
    example = jax.ShapeDtypeStruct((1, *example), "float32")
  one = jax.ShapeDtypeStruct((1, *example.shape[1:]), example.dtype)
  variables = jax.eval_shape(model.init, jax.random.key(0), one)
  layers = flops(model.apply, variables, None, one).layers
  return {
    path.removeprefix("params/"): layer.uses
    for path, layer in layers.items()
    if layer.size
  }


def forward(uses: Mapping[str, int], live: Mapping[str, float]) -> float:
  """Computes the multiply-adds of one example's forward pass from live weight counts.

  F = sum_l uses_l live_l

  Args:
    uses: the result of `uses`.
    live: live weights per layer; a missing layer costs nothing.

  Returns:
    The number of multiply-adds, of two floating-point operations each.

  Example:
    >>> forward({"a/kernel": 1, "b/kernel": 9}, {"a/kernel": 10, "b/kernel": 5})
    55
  """
  return sum(uses[name] * count for name, count in live.items())


def training(
  uses: Mapping[str, int],
  live: Mapping[str, float],
  sizes: Mapping[str, int],
  dense_gradients: bool,
) -> float:
  """Computes the multiply-adds of one example's training step.

  2 F(live) + F(size) where every step takes dense gradients, else 3 F(live)

  The sum covers the forward pass, the gradients of the activations, and those of the
  weights, as in appendix H of Evci et al. (2020). Mask updates are not included.

  Args:
    uses: the result of `uses`.
    live: live weights per layer.
    sizes: all weights per layer.
    dense_gradients: whether the gradients of masked weights are computed too.

  Returns:
    The number of multiply-adds.

  Example:
    >>> training({"a/kernel": 1}, {"a/kernel": 10}, {"a/kernel": 100}, True)
    120
  """
  sparse = forward(uses, live)
  return 2 * sparse + (forward(uses, sizes) if dense_gradients else sparse)
