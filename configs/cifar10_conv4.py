"""Conv-4 of the lottery ticket paper on CIFAR-10: small enough for a CPU.

Launch (after `python scripts/prepare_data.py cifar10`):
  python scripts/train.py --config=configs/cifar10_conv4.py --workdir=runs/conv4

Not run to completion here yet. Related models: `--config.model=conv2` and `conv6`.

Variants, as in `--config=configs/cifar10_conv4.py:rigl`: the names of
sparsejax/training/_methods.py; sparse_momentum is the default.
"""

from ml_collections import config_dict

from sparsejax import training


def get_config(variant: str = "sparse_momentum") -> config_dict.ConfigDict:
  c = training.default_config()
  c.dataset = "cifar10"
  c.augmentation = "crop_flip"
  c.model = "conv4"
  c.density = 0.1
  # Without normalization the last layer's outputs are too small to learn from at a
  # density of a few percent (at 5 %, accuracy is at chance after an epoch).
  c.rescale_start = True
  c.update_every = 450  # an epoch: 45,000 images in batches of 100
  c.learning_rate = 0.03
  c.lr_schedule = "cosine"
  c.momentum = 0.9
  c.weight_decay = 5e-4
  c.batch_size = 100
  c.num_epochs = 30
  training.use_method(c, variant)
  return c
