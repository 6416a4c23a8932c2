"""Models: flax linen modules whose parameters are plain pytrees."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn

from sparsejax.core import check_callable, check_integer, did_you_mean
from sparsejax.models._alexnet import AlexNet
from sparsejax.models._alexnet_imagenet import ImageNetAlexNet
from sparsejax.models._convnet import ConvNet
from sparsejax.models._initialization import (
  Initialization,
  glorot_normal,
  he_normal_fan_out,
  kaiming_normal,
  lecun_normal,
  signed_kaiming_constant,
  torch_uniform,
)
from sparsejax.models._lenet import LeNet5, LeNet300
from sparsejax.models._mlp import MLP
from sparsejax.models._resnet import ResNet20, ResNet50
from sparsejax.models._transformer import Transformer
from sparsejax.models._vanilla_cnn import VanillaCNN
from sparsejax.models._vgg import VGG16
from sparsejax.models._wide_resnet import WideResNet

MODELS = {
  "alexnet": ImageNetAlexNet,
  "alexnet_b": partial(AlexNet, size="b"),
  "alexnet_s": partial(AlexNet, size="s"),
  "conv2": partial(ConvNet, depth=2),
  "conv4": partial(ConvNet, depth=4),
  "conv6": partial(ConvNet, depth=6),
  "conv8": partial(ConvNet, depth=8),
  "lenet300": LeNet300,
  "lenet5": LeNet5,
  "mlp": MLP,
  "resnet20": ResNet20,
  "resnet50": ResNet50,
  "transformer": Transformer,
  "vanilla_cnn": VanillaCNN,
  "vgg16_c": partial(VGG16, version="c"),
  "vgg16_d": partial(VGG16, version="d"),
  "vgg16_like": partial(VGG16, version="like"),
  "wide_resnet": WideResNet,
}


# The initializations that a config can name.
INITIALIZATIONS: dict[str, Callable[..., Any]] = {
  "glorot_normal": glorot_normal,
  "he_normal_fan_out": he_normal_fan_out,
  "kaiming_normal": kaiming_normal,
  "lecun_normal": lecun_normal,
  "signed_kaiming_constant": signed_kaiming_constant,
  "torch_uniform": torch_uniform,
}


def create(
  name: str,
  num_classes: int = 10,
  initialization: str | Initialization | None = None,
  initialization_kwargs: Mapping[str, Any] | None = None,
  **kwargs: Any,
) -> nn.Module:
  """Builds a model by its name.

  Args:
    name: one of `MODELS`.
    num_classes: number of logits.
    initialization: a function from a layer's fan-in to its initializers, or the name of
      one of `INITIALIZATIONS`; None for the model's own.
    initialization_kwargs: further arguments of the initialization.
    **kwargs: attributes of the model.

  Returns:
    A flax linen module that maps images (n, height, width, channels) to logits (n,
    num_classes); `transformer` maps tokens (n, length) to (n, length, num_classes).

  Raises:
    TypeError: num_classes is not an integer, or initialization is neither a name nor a
      function.
    ValueError: there is no such model, initialization or attribute, or
      initialization_kwargs are given without an initialization.

  Example:
    >>> create("mlp", features=(64,)).num_classes
    10
  """
  if name not in MODELS:
    raise ValueError(
      f"model must be one of {', '.join(MODELS)}; got {name!r}"
      f"{did_you_mean(name, MODELS) or '.'}"
    )
  check_integer("num_classes", num_classes, 1)
  # Resolve the initialization to a function, and bind its further arguments.
  if initialization is not None and not isinstance(initialization, str):
    check_callable("initialization", initialization, "a name or a function", 1)
  if isinstance(initialization, str):
    if initialization not in INITIALIZATIONS:
      raise ValueError(
        f"initialization must be one of {', '.join(INITIALIZATIONS)}; got "
        f"{initialization!r}."
      )
    initialization = INITIALIZATIONS[initialization]
  if initialization_kwargs:
    if initialization is None:
      raise ValueError(
        "initialization must be given with initialization_kwargs; got None and "
        f"{dict(initialization_kwargs)}."
      )
    initialization = partial(initialization, **initialization_kwargs)
  if initialization is not None:
    kwargs["initialization"] = initialization
  # Check attributes here: flax's own error would not list the valid names.
  known = list(inspect.signature(MODELS[name]).parameters)
  if unknown := sorted(set(kwargs) - set(known)):
    raise ValueError(
      f"kwargs of {name} must be among {', '.join(known)}; got {', '.join(unknown)}."
    )
  return MODELS[name](num_classes=num_classes, **kwargs)
