r"""A random Conv-2, -4, -6 or -8 on CIFAR-10: only its mask is trained.

Launch (after `python scripts/prepare_data.py cifar10`):
  python scripts/train.py --config=configs/cifar10_conv_supermask.py \
    --workdir=runs/supermask_conv4

Edge-popup by the recipe of Ramanujan et al. (2020): 100 epochs, for an accelerator; not
run to completion here. Their figure peaks at about 77.5, 86, 88 and 88.5 % from Conv-2
to Conv-8, with 30 to 70 % of the weights kept.

Variants are conv2, conv4, conv6 or conv8 (default: conv4) and the words of
configs/mnist_lenet300_supermask.py, such as `:conv6,kaiming_normal,0.3`.
"""

from ml_collections import config_dict

from sparsejax import training
from sparsejax.training import use_supermask_variant

MODELS = ("conv2", "conv4", "conv6", "conv8")


def get_config(variant: str = "") -> config_dict.ConfigDict:
  words = variant.split(",")
  c = training.default_config()
  c.dataset = "cifar10"
  c.augmentation = "crop_flip"
  c.model = next((word for word in words if word in MODELS), "conv4")
  c.learning_rate = 0.1
  c.lr_schedule = "cosine"
  c.momentum = 0.9
  c.batch_size = 128
  c.num_epochs = 100
  use_supermask_variant(c, ",".join(word for word in words if word not in MODELS))
  return c
