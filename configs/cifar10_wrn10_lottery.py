"""WRN-10-1 on CIFAR-10 for two epochs: a residual network's instability, on a CPU.

Launch (after `python scripts/prepare_data.py cifar10`):
  python scripts/instability.py --config=configs/cifar10_wrn10_lottery.py \
    --workdir=runs/wrn10 --steps=0,200,700

About ten minutes on an idle CPU core. Between two copies trained with different data
orders from step 0 the error rises by 56 points, and from step 200 of 1,406 by less than
one: the network is not stable at initialization. scripts/lottery.py accepts the same
config.
"""

from ml_collections import config_dict

from sparsejax import training
from sparsejax.experiments.lottery import default_config


def get_config() -> config_dict.ConfigDict:
  train = training.default_config()
  train.dataset = "cifar10"
  train.model = "wide_resnet"
  train.model_kwargs = {"depth": 10, "width": 1}
  train.learning_rate = 0.1
  train.lr_schedule = "cosine"
  train.momentum = 0.9
  train.weight_decay = 5e-4
  train.batch_size = 64
  train.num_epochs = 2
  train.num_seeds = 1
  c = default_config()
  c.train = train
  c.scope = "global"
  c.eval_every = 20
  return c
