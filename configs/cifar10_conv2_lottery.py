"""Lottery tickets of Conv-2 on CIFAR-10, as in Frankle & Carbin (2019).

Launch (after `python scripts/prepare_data.py cifar10`):
  python scripts/lottery.py --config=configs/cifar10_conv2_lottery.py \
    --workdir=runs/conv2_lottery

For a GPU or TPU; not run to its end here yet. 27 epochs of 750 steps a level (20,000 in
the paper), 10 % of the convolutions, 20 % of the dense layers and 10 % of the output a
round. The paper's best tickets: 3.5 times as fast at 8.8 % of the weights, and 3.4
points more accurate at 4.6 %.
"""

from ml_collections import config_dict

from sparsejax import training
from sparsejax.training import lottery_config


def get_config() -> config_dict.ConfigDict:
  train = training.default_config()
  train.dataset = "cifar10"
  train.centering = "none"
  train.model = "conv2"
  train.model_kwargs = {"initialization": "glorot_normal"}
  train.optimizer = "adam"
  train.learning_rate = 2e-4
  train.lr_schedule = "constant"
  train.momentum = 0.9
  train.weight_decay = 0.0
  train.batch_size = 60
  train.num_epochs = 27
  train.num_seeds = 5
  c = lottery_config.default_config()
  c.train = train
  c.rounds = 20
  c.prune_fraction = 0.2
  c.prune_rates = {"conv": 0.1, "dense3": 0.1}
  c.controls = {"reinit": tuple(range(2, 21, 2)), "random_reinit": (10, 20)}
  c.one_shot_levels = (5, 10, 15, 20)
  return c
