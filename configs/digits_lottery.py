"""Lottery tickets on scikit-learn's 8x8 digits: nothing to download, a minute to run.

Launch:
  python scripts/lottery.py --config=configs/digits_lottery.py --workdir=runs/tickets

Three seeds, eight levels of 20 % a round (10 % of the output layer), with the control
of random reinitialization at three of them.
"""

from ml_collections import config_dict

from sparsejax.training import lottery_config


def get_config() -> config_dict.ConfigDict:
  c = lottery_config.default_config()
  c.train.dataset = "digits"
  c.train.model = "mlp"
  c.train.model_kwargs = {"features": (64, 32)}
  c.train.optimizer = "adam"
  c.train.learning_rate = 3e-3
  c.train.lr_schedule = "constant"
  c.train.weight_decay = 0.0
  c.train.batch_size = 32
  c.train.num_epochs = 40
  c.train.num_seeds = 3
  c.rounds = 8
  c.prune_fraction = 0.2
  c.prune_rates = {"dense3": 0.1}
  c.eval_every = 20
  c.measure_every = 200
  c.controls = {"reinit": (3, 6, 8)}
  c.one_shot_levels = (6, 8)
  return c
