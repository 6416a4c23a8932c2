"""What a network costs, estimated from its masks and the shapes of its layers."""

import math
from collections.abc import Mapping
from typing import Any

import jax


def uses(model: Any, image_shape: tuple[int, ...]) -> dict[str, int]:
  """How often one image uses each weight of a layer.

  uses_l = positions of the layer's output: 1 for a dense layer on vectors, out height
  x out width for a convolution (borders counted as if they were image).

  Args:
    model: a flax linen module; layers are those of its modules that hold a `kernel` and
      give an output of shape (n, ..., features).
    image_shape: of one image, such as (28, 28, 1).

  Returns:
    The count by the kernel's slash-separated path. Nothing is computed.

  Example:
    >>> from sparsejax import models
    >>> uses(models.LeNet5(), (28, 28, 1))["conv1/kernel"]
    576
  """
  images = jax.ShapeDtypeStruct((1, *image_shape), "float32")
  variables = jax.eval_shape(model.init, jax.random.key(0), images)

  def outputs(variables, images):
    _, seen = model.apply(
      variables, images, capture_intermediates=True, mutable=["intermediates"]
    )
    return seen["intermediates"]

  seen = jax.eval_shape(outputs, variables, images)
  counts = {}
  for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"]):
    *module, name = (key.key for key in path)
    if name == "kernel":
      node = seen
      for part in module:
        node = node[part]
      counts["/".join([*module, name])] = math.prod(node["__call__"][0].shape[1:-1])
  return counts


def forward(uses: Mapping[str, int], live: Mapping[str, float]) -> float:
  """Multiply-adds of one image's forward pass.

  F = sum_l uses_l live_l

  Args:
    uses: of `uses`.
    live: live weights of each layer; one that is not there costs nothing.

  Returns:
    Their number; two floating-point operations each.

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
  """Multiply-adds of one image's training step.

  2 F(live) + F(size) where every step takes dense gradients, else 3 F(live)

  The forward pass, the gradients of the activations, and those of the weights, as in
  appendix H of Evci et al. (2020). What a mask update takes is left out.

  Args:
    uses: of `uses`.
    live: live weights of each layer.
    sizes: weights of each layer.
    dense_gradients: whether dead weights' gradients are computed too.

  Returns:
    Their number.

  Example:
    >>> training({"a/kernel": 1}, {"a/kernel": 10}, {"a/kernel": 100}, True)
    120
  """
  sparse = forward(uses, live)
  return 2 * sparse + (forward(uses, sizes) if dense_gradients else sparse)
