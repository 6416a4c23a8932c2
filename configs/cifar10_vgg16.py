"""VGG16-D on CIFAR-10, by the recipe of Dettmers & Zettlemoyer (2019).

Launch (after `python scripts/prepare_data.py cifar10`):
  python scripts/train.py --config=configs/cifar10_vgg16.py --workdir=runs/vgg16

For a GPU or TPU; not run to completion here yet. The other networks of the paper's
table are `--config.model=vgg16_c`, `vgg16_like` (at density 0.03), and `alexnet_s` and
`alexnet_b` (at density 0.1).

Variants, as in `--config=configs/cifar10_vgg16.py:rigl`: the names of
sparsejax/training/_methods.py; sparse_momentum is the default.
"""

from ml_collections import config_dict

from sparsejax import training


def get_config(variant: str = "sparse_momentum") -> config_dict.ConfigDict:
  c = training.default_config()
  c.dataset = "cifar10"
  c.augmentation = "crop_flip"
  c.model = "vgg16_d"
  c.density = 0.05
  c.update_every = 450  # an epoch: 45,000 images in batches of 100
  c.learning_rate = 0.1
  c.lr_schedule = "step"
  c.lr_decay_every = 25_000
  c.lr_decay_factor = 0.1
  c.momentum = 0.9
  c.weight_decay = 5e-4
  c.batch_size = 100
  c.num_epochs = 100
  training.use_method(c, variant)
  return c
