r"""A random Conv-8 whose mask is learned on CIFAR-10 and whose weights never are.

Launch (after `python scripts/prepare_data.py cifar10`):
  python scripts/train.py --config=configs/cifar10_conv8_supermask.py \
    --workdir=runs/supermask_conv8

Edge-popup by the recipe of Ramanujan et al. (2020): 100 epochs, for an accelerator, and
not run to its end here. Their figure peaks at about 88.5 %, with 30 to 70 % of the
weights kept.

Variants as in configs/mnist_lenet300_supermask.py, such as `:kaiming_normal,0.3`.
"""

from ml_collections import config_dict

from sparsejax import training
from sparsejax.training import supermask


def get_config(variant: str = "") -> config_dict.ConfigDict:
  c = training.default_config()
  c.dataset = "cifar10"
  c.augmentation = "crop_flip"
  c.model = "conv8"
  c.learning_rate = 0.1
  c.lr_schedule = "cosine"
  c.momentum = 0.9
  c.batch_size = 128
  c.num_epochs = 100
  supermask.use_variant(c, variant)
  return c
