"""Lottery tickets on scikit-learn's 8x8 digits: nothing to download, a minute to run.

Launch:
  python scripts/lottery.py --config=configs/digits_lottery.py --workdir=runs/tickets

Three seeds and eight levels; each round prunes 20 % of the weights (10 % of the output
layer). Three levels have the control of random reinitialization. Takes half a minute on
two CPU cores. The images are too easy for accuracies to differ, but early stopping
does: tickets of 27 % stop after about 650 steps, the dense network after 1,000 and
reinitialized tickets after 1,300.
"""

from ml_collections import config_dict

from sparsejax import training
from sparsejax.experiments.lottery import default_config


def get_config() -> config_dict.ConfigDict:
  train = training.default_config()
  train.dataset = "digits"
  train.model = "mlp"
  train.model_kwargs = {"features": (64, 32)}
  train.optimizer = "adam"
  train.learning_rate = 3e-3
  train.lr_schedule = "constant"
  train.weight_decay = 0.0
  train.batch_size = 32
  train.num_epochs = 40
  train.num_seeds = 3
  c = default_config()
  c.train = train
  c.rounds = 8
  c.prune_fraction = 0.2
  c.prune_rates = {"dense3": 0.1}
  c.eval_every = 20
  c.measure_every = 200
  c.controls = {"reinit": (3, 6, 8)}
  c.one_shot_levels = (6, 8)
  return c
