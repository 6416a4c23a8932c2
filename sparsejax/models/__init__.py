"""Models: flax linen modules whose parameters are plain pytrees."""

from typing import Any

import flax.linen as nn

from sparsejax.models.conv import conv2d
from sparsejax.models.initialization import lecun_normal, torch_uniform
from sparsejax.models.layers import Conv
from sparsejax.models.lenet import LeNet5, LeNet300
from sparsejax.models.mlp import MLP
from sparsejax.models.pooling import max_pool

MODELS = {"lenet300": LeNet300, "lenet5": LeNet5, "mlp": MLP}


def create(name: str, num_classes: int = 10, **kwargs: Any) -> nn.Module:
  """Builds a model by its name.

  Args:
    name: one of "lenet300", "lenet5", "mlp".
    num_classes: number of logits.
    **kwargs: the model's own attributes.

  Returns:
    A flax linen module that maps images (n, height, width, channels) to logits.

  Raises:
    ValueError: where there is no such model.

  Example:
    >>> create("mlp", features=(64,)).num_classes
    10
  """
  if name not in MODELS:
    raise ValueError(f"model must be one of {', '.join(MODELS)}; got {name!r}.")
  return MODELS[name](num_classes=num_classes, **kwargs)


__all__ = [
  "MLP",
  "MODELS",
  "Conv",
  "LeNet5",
  "LeNet300",
  "conv2d",
  "create",
  "lecun_normal",
  "max_pool",
  "torch_uniform",
]
