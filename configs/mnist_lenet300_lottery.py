"""Lottery tickets of LeNet-300-100 on MNIST, as in Frankle & Carbin (2019).

Launch (after `python scripts/prepare_data.py mnist`):
  python scripts/lottery.py --config=configs/mnist_lenet300_lottery.py \
    --workdir=runs/lenet300_lottery

Five seeds and 15 levels down to 3.58 % of the weights, for 17 epochs of 916 steps each:
about half an hour on one idle CPU core. The paper trains for 50,000 steps:
`--config.train.num_epochs=55`. The expected results are in results/lottery.json, which
`python -m scripts.reproduce.lottery_tickets` writes from this config.
"""

from ml_collections import config_dict

from sparsejax import training
from sparsejax.experiments.lottery import default_config


def get_config() -> config_dict.ConfigDict:
  train = training.default_config()
  train.dataset = "mnist"
  train.validation_fraction = 5000 / 60_000
  train.centering = "none"
  train.model = "lenet300"
  train.model_kwargs = {"initialization": "glorot_normal"}
  train.optimizer = "adam"
  train.learning_rate = 1.2e-3
  train.lr_schedule = "constant"
  train.momentum = 0.9
  train.weight_decay = 0.0
  train.batch_size = 60
  train.num_epochs = 17
  train.num_seeds = 5
  c = default_config()
  c.train = train
  c.rounds = 15
  c.prune_fraction = 0.2
  c.prune_rates = {"dense3": 0.1}
  c.controls = {"reinit": (7, 9, 15), "random": (7, 9, 15)}
  c.one_shot_levels = (7, 9, 15)
  return c
