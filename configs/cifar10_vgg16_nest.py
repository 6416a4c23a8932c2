"""VGG-16 with batch normalization on CIFAR-10, grown from a seed and pruned (NeST).

Launch (after `python scripts/prepare_data.py cifar10`):
  python scripts/grow_and_prune.py --config=configs/cifar10_vgg16_nest.py \
    --workdir=runs/vgg16_nest

For a GPU or TPU; not run here. The paper prunes VGG-16 on ImageNet: 30.2x fewer
parameters and 8.6x fewer operations at 2.31 points more error (arXiv version 3), from a
seed with three quarters of the width and 30 % of its connections. Pruning compares the
weights as scaled by the batch normalization.
"""

from ml_collections import config_dict

from sparsejax.experiments.nest import default_config


def get_config() -> config_dict.ConfigDict:
  c = default_config()
  c.dataset = "cifar10"
  c.augmentation = "crop_flip"
  c.model = "vgg16_like"
  c.features = (64, 64, 128, 128, 256, 256, 256, *(512,) * 7)
  c.width_ratio = 0.75
  c.density = 0.3
  c.target_error = 7.0
  c.growth_rounds = 10
  c.growth_epochs = 10
  c.growth_connections = 0.2
  c.growth_units = (2, 2, 4, 4, 8, 8, 8, *(16,) * 7)
  c.milestones = (1_500_000, 500_000)
  c.milestone_rounds = (20, 20)
  c.prune_epochs = 4
  c.tolerated_error = 9.0
  c.tune_epochs = 60
  c.learning_rate = 1e-3
  c.weight_decay = 1e-2
  return c
