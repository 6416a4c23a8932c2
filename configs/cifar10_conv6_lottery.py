"""Lottery tickets of Conv-6 on CIFAR-10, as in Frankle & Carbin (2019).

Launch (after `python scripts/prepare_data.py cifar10`):
  python scripts/lottery.py --config=configs/cifar10_conv6_lottery.py \
    --workdir=runs/conv6_lottery

For a GPU or TPU; not run to its end here yet. 40 epochs of 750 steps a level (30,000 in
the paper), 15 % of the convolutions, 20 % of the dense layers and 10 % of the output a
round. The paper's best tickets: 2.5 times as fast at 15.1 % of the weights, and 3.3
points more accurate at 26.4 %.
"""

from ml_collections import config_dict

from sparsejax import training
from sparsejax.training import lottery_config


def get_config() -> config_dict.ConfigDict:
  train = training.default_config()
  train.dataset = "cifar10"
  train.centering = "none"
  train.model = "conv6"
  train.model_kwargs = {"initialization": "glorot_normal"}
  train.optimizer = "adam"
  train.learning_rate = 3e-4
  train.lr_schedule = "constant"
  train.momentum = 0.9
  train.weight_decay = 0.0
  train.batch_size = 60
  train.num_epochs = 40
  train.num_seeds = 5
  c = lottery_config.default_config()
  c.train = train
  c.rounds = 20
  c.prune_fraction = 0.2
  c.prune_rates = {"conv": 0.15, "dense3": 0.1}
  c.controls = {"reinit": tuple(range(2, 21, 2)), "random_reinit": (10, 20)}
  c.one_shot_levels = (5, 10, 15, 20)
  return c
