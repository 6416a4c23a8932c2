"""Lottery tickets of LeNet-300-100 on MNIST, as in Frankle & Carbin (2019).

Launch (after `python scripts/prepare_data.py mnist`):
  python scripts/lottery.py --config=configs/mnist_lenet300_lottery.py \
    --workdir=runs/lenet300_lottery

Five seeds and 15 levels down to 3.58 % of the weights, for 18 epochs of 916 steps each:
one and a half hours on one quiet CPU core. The paper trains for 50,000 steps:
`--config.train.num_epochs=55`. What to expect is in results/lottery.json.
"""

from ml_collections import config_dict

from sparsejax.training import lottery_config


def get_config() -> config_dict.ConfigDict:
  c = lottery_config.default_config()
  c.train.dataset = "mnist"
  c.train.validation_fraction = 5000 / 60_000
  c.train.centering = "none"
  c.train.model = "lenet300"
  c.train.model_kwargs = {"initialization": "glorot_normal"}
  c.train.optimizer = "adam"
  c.train.learning_rate = 1.2e-3
  c.train.lr_schedule = "constant"
  c.train.momentum = 0.9
  c.train.weight_decay = 0.0
  c.train.batch_size = 60
  c.train.num_epochs = 18
  c.train.num_seeds = 5
  c.rounds = 15
  c.prune_fraction = 0.2
  c.prune_rates = {"dense3": 0.1}
  c.controls = {"reinit": (7, 9, 15)}
  c.one_shot_levels = (7, 9, 15)
  return c
