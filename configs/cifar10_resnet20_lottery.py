"""Lottery tickets of ResNet-20 on CIFAR-10: pruned globally, rewound to an early step.

Launch (after `python scripts/prepare_data.py cifar10`):
  python scripts/lottery.py --config=configs/cifar10_resnet20_lottery.py \
    --workdir=runs/resnet20_lottery

For a GPU or TPU; not run to completion here yet. Each round prunes 20 % of all 3 x 3
convolutions; shortcuts and the output layer stay dense. SGD has Nesterov momentum here,
unlike in the papers.

Variants, as in `--config=configs/cifar10_resnet20_lottery.py:warmup`:
  late_rewinding (the default): the recipe of Frankle et al. (2020), rewound to step
    500, the first at which they find stable tickets (2,000 for a dense network).
  warmup: the recipe of Frankle & Carbin (2019), who rewind to step 0 and raise the
    learning rate to 0.03 over 20,000 of 30,000 steps.
  learning_rate: as late_rewinding, but the trained weights are kept and only the
    schedule is rewound (Renda et al. 2020): 92.21 % test accuracy at 26.2 % of the
    weights.
"""

from ml_collections import config_dict

from sparsejax import training
from sparsejax.experiments.lottery import default_config
from sparsejax.training import ConfigError

VARIANTS = ("late_rewinding", "warmup", "learning_rate")


def get_config(variant: str = "late_rewinding") -> config_dict.ConfigDict:
  if variant not in VARIANTS:
    raise ConfigError(f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}")
  train = training.default_config()
  train.dataset = "cifar10"
  train.augmentation = "crop_flip"
  train.model = "resnet20"
  train.learning_rate = 0.1
  train.lr_schedule = "step"
  train.lr_decay_epochs = (91, 137)  # 32,000 and 48,000 steps of 351 an epoch
  train.momentum = 0.9
  train.weight_decay = 1e-4
  train.batch_size = 128
  train.num_epochs = 180
  train.num_seeds = 3
  c = default_config()
  if variant == "warmup":
    train.learning_rate = 0.03
    train.warmup_epochs = 57.0
    train.lr_decay_epochs = (57, 71)
    train.num_epochs = 86
  else:
    c.rewind_step = 500
  if variant == "learning_rate":
    c.restart = "learning_rate"
    # 20,000 steps before the end, where the learning rate has its second lowest value.
    c.rewind_step = 43_180
  c.train = train
  c.rounds = 15
  c.prune_fraction = 0.2
  c.scope = "global"
  c.where = r"conv\d+/kernel$"
  c.eval_every = 351
  c.measure_every = 3510
  c.controls = {"reinit": (5, 10, 15), "random": (5, 10, 15)}
  return c
