"""Wide residual networks on CIFAR-10, by the recipe of Dettmers & Zettlemoyer (2019).

Launch (after `python scripts/prepare_data.py cifar10`):
  python scripts/train.py --config=configs/cifar10_wide_resnet.py --workdir=runs/wrn

For a GPU or TPU; not run to completion here yet. The paper's test accuracy for WRN-28-2
is 93.61 % at this density, and 94.70 % dense. Its authors later advised 250 epochs
(`--config.num_epochs=250 --config.lr_decay_every=56250`). Other sizes:
`--config.model_kwargs.depth=22 --config.model_kwargs.width=8`.

Variants, as in `--config=configs/cifar10_wide_resnet.py:rigl`: the names of
sparsejax/training/_methods.py; sparse_momentum is the default.
"""

from ml_collections import config_dict

from sparsejax import training


def get_config(variant: str = "sparse_momentum") -> config_dict.ConfigDict:
  c = training.default_config()
  c.dataset = "cifar10"
  c.augmentation = "crop_flip"
  c.model = "wide_resnet"
  c.model_kwargs = {"depth": 28, "width": 2, "dropout": 0.3}
  c.density = 0.1
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
