r"""A random LeNet-5 on MNIST: only its mask is trained.

Launch (after `python scripts/prepare_data.py mnist`):
  python scripts/train.py --config=configs/mnist_lenet5_supermask.py \
    --workdir=runs/supermask_lenet5

Edge-popup (Ramanujan et al. 2020), with the variants of
configs/mnist_lenet300_supermask.py. Takes about five minutes on an idle CPU core; not
run to completion here.
"""

from ml_collections import config_dict

from sparsejax import training
from sparsejax.training import use_supermask_variant


def get_config(variant: str = "") -> config_dict.ConfigDict:
  c = training.default_config()
  c.dataset = "mnist"
  c.model = "lenet5"
  c.learning_rate = 0.1
  c.lr_schedule = "cosine"
  c.momentum = 0.9
  c.batch_size = 128
  c.num_epochs = 5
  use_supermask_variant(c, variant)
  return c
