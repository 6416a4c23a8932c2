"""Models: flax linen modules whose parameters are plain pytrees."""

from sparsejax.models._alexnet import AlexNet
from sparsejax.models._alexnet_imagenet import ImageNetAlexNet
from sparsejax.models._conv import conv2d
from sparsejax.models._conv_stack import conv_layer, conv_stack
from sparsejax.models._convnet import ConvNet
from sparsejax.models._create import INITIALIZATIONS, MODELS, create
from sparsejax.models._initialization import (
  glorot_normal,
  he_normal_fan_out,
  kaiming_normal,
  lecun_normal,
  signed_kaiming_constant,
  torch_uniform,
)
from sparsejax.models._layers import Conv
from sparsejax.models._learning_rate import (
  calibrate_learning_rate,
  check_centred,
  scale_by_path,
)
from sparsejax.models._lenet import LeNet5, LeNet300
from sparsejax.models._mixture_of_experts import MixtureOfExperts
from sparsejax.models._mlp import MLP
from sparsejax.models._pooling import max_pool
from sparsejax.models._resnet import ResNet, ResNet20, ResNet50
from sparsejax.models._transformer import Transformer
from sparsejax.models._vanilla_cnn import VanillaCNN, space_to_depth
from sparsejax.models._vgg import VGG16
from sparsejax.models._wide_resnet import WideResNet

__all__ = [
  "INITIALIZATIONS",
  "MLP",
  "MODELS",
  "VGG16",
  "AlexNet",
  "Conv",
  "ConvNet",
  "ImageNetAlexNet",
  "LeNet5",
  "LeNet300",
  "MixtureOfExperts",
  "ResNet",
  "ResNet20",
  "ResNet50",
  "Transformer",
  "VanillaCNN",
  "WideResNet",
  "calibrate_learning_rate",
  "check_centred",
  "conv2d",
  "conv_layer",
  "conv_stack",
  "create",
  "glorot_normal",
  "he_normal_fan_out",
  "kaiming_normal",
  "lecun_normal",
  "max_pool",
  "scale_by_path",
  "signed_kaiming_constant",
  "space_to_depth",
  "torch_uniform",
]
